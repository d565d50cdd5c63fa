#include "worker/text/tokenizer.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;

// A token of tokenizer_config.json or special_tokens_map.json: its text, or an object that has it.
absl::StatusOr<std::optional<std::string>> GetTokenText(const json& object, const std::string& key) {
  const json* value = FindMember(object, key);
  if (value == nullptr) return std::optional<std::string>();
  absl::StatusOr<std::string> text = value->is_object() ? GetString(*value, "content") : GetString(object, key);
  if (!text.ok()) return Annotate(text.status(), key);
  return std::optional<std::string>(*std::move(text));
}

absl::StatusOr<json> ParseOptional(const std::string& text, absl::string_view file) {
  if (text.empty()) return json::object();
  absl::StatusOr<json> parsed = ParseJson(text);
  if (!parsed.ok()) return Annotate(parsed.status(), file);
  return parsed;
}

// The chat template: a string, or a list of named ones, of which "default" is meant.
absl::StatusOr<std::string> GetChatTemplate(const json& config) {
  const json* value = FindMember(config, "chat_template");
  if (value == nullptr || !value->is_array()) return GetString(config, "chat_template", "");
  for (const json& entry : *value) {
    QST_ASSIGN_OR_RETURN(const std::string name, GetString(entry, "name", ""));
    if (name == "default") return GetString(entry, "template", "");
  }
  return std::string();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromModelFolder(const std::string& folder) {
  QST_ASSIGN_OR_RETURN(const TokenizerFiles files, ReadTokenizerFiles(folder));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = FromFiles(files);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), folder);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromDefinition(const TokenizerDefinition& definition) {
  QST_ASSIGN_OR_RETURN(const TokenizerFiles files, ToTokenizerFiles(definition));
  return FromFiles(files);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromFiles(const TokenizerFiles& files) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  QST_RETURN_IF_ERROR(Annotate(tokenizer->LoadTokenizerJson(files.tokenizer_json), "tokenizer.json"));
  QST_RETURN_IF_ERROR(tokenizer->LoadSettings(files));
  return tokenizer;
}

absl::Status Tokenizer::LoadTokenizerJson(const std::string& text) {
  QST_ASSIGN_OR_RETURN(const json root, ParseJson(text));
  const json* model = FindMember(root, "model");
  if (model == nullptr) return absl::InvalidArgumentError("no \"model\"");
  absl::StatusOr<Normalizer> normalizer = Normalizer::FromJson(FindMember(root, "normalizer"));
  if (!normalizer.ok()) return Annotate(normalizer.status(), "normalizer");
  normalizer_ = *std::move(normalizer);
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::FromJson(FindMember(root, "pre_tokenizer"));
  if (!pre_tokenizer.ok()) return Annotate(pre_tokenizer.status(), "pre_tokenizer");
  pre_tokenizer_ = *std::move(pre_tokenizer);
  absl::StatusOr<std::unique_ptr<BpeModel>> bpe = BpeModel::FromJson(*model, pre_tokenizer_.ends_with_byte_level());
  if (!bpe.ok()) return Annotate(bpe.status(), "model");
  model_ = *std::move(bpe);
  absl::StatusOr<Decoder> decoder = Decoder::FromJson(FindMember(root, "decoder"));
  if (!decoder.ok()) return Annotate(decoder.status(), "decoder");
  decoder_ = *std::move(decoder);
  absl::StatusOr<AddedTokens> added = AddedTokens::FromJson(FindMember(root, "added_tokens"), *model_, normalizer_);
  if (!added.ok()) return Annotate(added.status(), "added_tokens");
  added_tokens_ = *std::move(added);
  vocab_size_ = std::max(model_->vocab_size(), added_tokens_.end_id());
  unk_id_ = model_->unk_id();
  QST_ASSIGN_OR_RETURN(const std::string letter, normalizer_.Apply("a"));
  PreTokenizer::Words words;
  QST_RETURN_IF_ERROR(pre_tokenizer_.Apply(letter, true, &words));
  // A space of the tokenizer's own, as it is or as U+2581.
  adds_prefix_space_ = absl::StartsWith(words.text, "\xE2\x96\x81") || absl::StartsWith(words.text, " ");
  return Annotate(LoadPostProcessor(FindMember(root, "post_processor"), 0), "post_processor");
}

absl::Status Tokenizer::LoadPostProcessor(const json* component, int depth) {
  if (component == nullptr) return absl::OkStatus();
  if (depth > kMaxDepth) return absl::InvalidArgumentError("sequences are nested too deep");
  QST_ASSIGN_OR_RETURN(const std::string type, GetString(*component, "type"));
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets into the text, adds no token
  if (type == "TemplateProcessing") return LoadTemplate(*component);
  if (type == "RobertaProcessing" || type == "BertProcessing") return LoadClassifierTokens(*component);
  if (type == "Sequence") {
    const json* parts = FindMember(*component, "processors");
    if (parts == nullptr || !parts->is_array()) return absl::InvalidArgumentError("no array \"processors\"");
    for (const json& part : *parts) QST_RETURN_IF_ERROR(LoadPostProcessor(&part, depth + 1));
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat("type \"", type, "\" is not supported"));
}

// RoBERTa's and BERT's: "cls" before the text and "sep" after it, each a token and its id.
absl::Status Tokenizer::LoadClassifierTokens(const json& component) {
  for (const auto& [key, is_before] : {std::pair("cls", true), std::pair("sep", false)}) {
    const json* token = FindMember(component, key);
    if (token == nullptr || !token->is_array() || token->size() != 2) {
      return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is not a token and its id"));
    }
    const json& id = (*token)[1];
    if (!id.is_number_integer() || id < 0 || id >= vocab_size_) {
      return absl::InvalidArgumentError(absl::StrCat("the id of \"", key, "\" is not in the vocabulary"));
    }
    if (is_before) {
      prefix_.insert(prefix_.begin(), id.get<int32_t>());
    } else {
      suffix_.push_back(id.get<int32_t>());
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::LoadTemplate(const json& component) {
  const json* single = FindMember(component, "single");
  if (single == nullptr || !single->is_array()) return absl::InvalidArgumentError("no array \"single\"");
  const json* special_tokens = FindMember(component, "special_tokens");
  std::vector<int32_t> before, after;
  int num_texts = 0;
  for (const json& part : *single) {
    if (const json* sequence = FindMember(part, "Sequence")) {
      QST_ASSIGN_OR_RETURN(const std::string id, GetString(*sequence, "id"));
      if (id != "A") return absl::InvalidArgumentError(absl::StrCat("\"single\" has the sequence \"", id, "\""));
      ++num_texts;
      continue;
    }
    const json* special = FindMember(part, "SpecialToken");
    if (special == nullptr) return absl::InvalidArgumentError("\"single\" has neither token nor sequence");
    QST_ASSIGN_OR_RETURN(const std::string name, GetString(*special, "id"));
    const json* entry = special_tokens == nullptr ? nullptr : FindMember(*special_tokens, name);
    const json* ids = entry == nullptr ? nullptr : FindMember(*entry, "ids");
    if (ids == nullptr || !ids->is_array()) {
      return absl::InvalidArgumentError(absl::StrCat("\"special_tokens\" gives no ids for \"", name, "\""));
    }
    for (const json& id : *ids) {
      if (!id.is_number_integer() || id < 0 || id >= vocab_size_) {
        return absl::InvalidArgumentError(absl::StrCat("the id of \"", name, "\" is not in the vocabulary"));
      }
      (num_texts == 0 ? before : after).push_back(id.get<int32_t>());
    }
  }
  if (num_texts != 1) return absl::InvalidArgumentError("\"single\" does not have its text exactly once");
  // A template wraps what earlier ones of a sequence have made.
  prefix_.insert(prefix_.begin(), before.begin(), before.end());
  suffix_.insert(suffix_.end(), after.begin(), after.end());
  return absl::OkStatus();
}

absl::Status Tokenizer::LoadSettings(const TokenizerFiles& files) {
  QST_ASSIGN_OR_RETURN(const json config, ParseOptional(files.tokenizer_config_json, "tokenizer_config.json"));
  QST_ASSIGN_OR_RETURN(const json map, ParseOptional(files.special_tokens_map_json, "special_tokens_map.json"));
  QST_ASSIGN_OR_RETURN(const json generation, ParseOptional(files.generation_config_json, "generation_config.json"));
  struct Role {
    const char* name;
    std::optional<int32_t>* id;
    bool is_needed;  // named but absent from the vocabulary is an error
  };
  for (const Role& role : {Role{"bos_token", &bos_id_, true}, Role{"eos_token", &eos_id_, true},
                           Role{"unk_token", &unk_id_, false}, Role{"pad_token", &pad_id_, false}}) {
    absl::StatusOr<std::optional<std::string>> text = GetTokenText(config, role.name);
    if (!text.ok()) return Annotate(text.status(), "tokenizer_config.json");
    if (!text->has_value()) {
      text = GetTokenText(map, role.name);
      if (!text.ok()) return Annotate(text.status(), "special_tokens_map.json");
    }
    if (!text->has_value()) continue;
    const std::optional<int32_t> id = TokenToId(**text);
    if (id.has_value()) {
      *role.id = id;
    } else if (role.is_needed) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer_config.json: ", role.name, " \"", **text,
                                                     "\" is not in the vocabulary of tokenizer.json"));
    }
  }
  auto valid_id = [&](const json& value) -> std::optional<int32_t> {
    if (!value.is_number_integer() || value < 0 || value >= vocab_size_) return std::nullopt;
    return value.get<int32_t>();
  };
  std::set<int32_t> stops;
  if (const json* eos = FindMember(generation, "eos_token_id")) {
    for (const json& value : eos->is_array() ? *eos : json::array({*eos})) {
      if (const std::optional<int32_t> id = valid_id(value)) stops.insert(*id);
    }
  }
  // Some folders name the tokens by id only.
  if (!eos_id_.has_value() && !stops.empty()) eos_id_ = *stops.begin();
  if (const json* bos = FindMember(generation, "bos_token_id"); bos != nullptr && !bos_id_.has_value()) {
    bos_id_ = valid_id(*bos);
  }
  if (eos_id_.has_value()) stops.insert(*eos_id_);
  stop_ids_.assign(stops.begin(), stops.end());

  chat_template_ = files.chat_template_jinja;
  if (chat_template_.empty()) {
    absl::StatusOr<std::string> chat_template = GetChatTemplate(config);
    if (!chat_template.ok()) return Annotate(chat_template.status(), "tokenizer_config.json");
    chat_template_ = *std::move(chat_template);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text, bool add_special) const {
  std::string repaired;
  if (!IsValidUtf8(text)) {
    repaired = ToValidUtf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  if (add_special) ids = prefix_;
  QST_ASSIGN_OR_RETURN(std::vector<AddedTokens::Piece> pieces, added_tokens_.Split(text, normalizer_));
  BpeModel::Encoder encoder(model_.get());
  PreTokenizer::Words words;
  for (AddedTokens::Piece& piece : pieces) {
    if (piece.id.has_value()) {
      ids.push_back(*piece.id);
      continue;
    }
    QST_RETURN_IF_ERROR(pre_tokenizer_.Apply(std::move(piece.text), piece.is_at_start, &words));
    for (const TextRange& range : words.ranges) {
      encoder.Append(absl::string_view(words.text.data() + range.begin, range.end - range.begin), &ids);
    }
  }
  if (add_special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

const std::string* Tokenizer::DecodedToken(int32_t id, bool skip_special) const {
  const AddedToken* added = added_tokens_.FindById(id);
  if (added == nullptr) return model_->IdToToken(id);
  return skip_special && added->is_special ? nullptr : &added->content;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special) const {
  TextStream stream(this, skip_special);
  std::string text;
  for (const int32_t id : ids) text += stream.Add(id);
  return text + stream.Finish();
}

Tokenizer::TextStream::TextStream(const Tokenizer* tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special), stream_(&tokenizer->decoder_) {}

std::string Tokenizer::TextStream::Add(int32_t id) {
  std::string text;
  const std::string* token = tokenizer_->DecodedToken(id, skip_special_);
  // Only a pattern of the file that explodes on a single token can fail; nothing is better than a crash.
  if (token == nullptr || !stream_.Add(*token, &text).ok()) return std::string();
  return text;
}

std::string Tokenizer::TextStream::Finish() {
  std::string text;
  return stream_.Finish(&text).ok() ? text : std::string();
}

std::optional<int32_t> Tokenizer::TokenToId(absl::string_view token) const {
  if (const AddedToken* added = added_tokens_.FindByContent(token)) return added->id;
  return model_->TokenToId(token);
}

std::optional<std::string> Tokenizer::IdToToken(int32_t id) const {
  if (const AddedToken* added = added_tokens_.FindById(id)) return added->content;
  if (const std::string* token = model_->IdToToken(id)) return *token;
  return std::nullopt;
}

}  // namespace qst
