#include "worker/text/tokenizer_settings.h"

#include <map>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"

namespace qst {
namespace {

using nlohmann::json;
using TokenType = TokenizerDefinition::TokenType;

constexpr char kConfigFile[] = "tokenizer_config.json";
// Names that GPT-2's library gives without any file saying so.
constexpr char kGpt2EndOfText[] = "<|endoftext|>";

struct AddedEntry {
  std::string content;
  bool is_special = false;
};

absl::StatusOr<json> ParseOptional(const std::string& text, absl::string_view file) {
  if (text.empty()) return json::object();
  absl::StatusOr<json> parsed = ParseJson(text);
  if (!parsed.ok()) return Annotate(parsed.status(), file);
  return parsed;
}

// A token of a settings file: its text, or an object that has it.
std::optional<std::string> TokenText(const json* value) {
  if (value != nullptr && value->is_object()) value = FindMember(*value, "content");
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return value->get<std::string>();
}

// added_tokens.json: token to id.
absl::Status CollectFromFile(const json& added, std::map<int64_t, AddedEntry>* entries) {
  for (const auto& [content, id] : added.items()) {
    if (!id.is_number_integer() || id < 0 || id > (1 << 24)) {
      return absl::InvalidArgumentError(absl::StrCat("the id of \"", content, "\" is not an integer from 0 to 2^24"));
    }
    (*entries)[id.get<int64_t>()] = {content, false};
  }
  return absl::OkStatus();
}

// "added_tokens_decoder" of tokenizer_config.json: id to token.
absl::Status CollectFromConfig(const json& config, std::map<int64_t, AddedEntry>* entries) {
  const json* decoder = FindMember(config, "added_tokens_decoder");
  if (decoder == nullptr) return absl::OkStatus();
  for (const auto& [key, token] : decoder->items()) {
    int64_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || id < 0 || id > (1 << 24)) {
      return absl::InvalidArgumentError(absl::StrCat("added_tokens_decoder: \"", key, "\" is not an id"));
    }
    AddedEntry entry;
    QST_ASSIGN_OR_RETURN(entry.content, GetString(token, "content"));
    QST_ASSIGN_OR_RETURN(entry.is_special, GetBool(token, "special", false));
    for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
      QST_ASSIGN_OR_RETURN(const bool is_set, GetBool(token, flag, false));
      if (is_set) {
        return absl::UnimplementedError(absl::StrCat("\"", flag, "\" of the token \"", entry.content,
                                                     "\" is not supported without tokenizer.json"));
      }
    }
    (*entries)[id] = std::move(entry);
  }
  return absl::OkStatus();
}

absl::Status AddTokens(const std::map<int64_t, AddedEntry>& entries, TokenizerDefinition* definition) {
  for (const auto& [id, entry] : entries) {
    const int64_t size = static_cast<int64_t>(definition->tokens.size());
    if (id > size) {
      return absl::InvalidArgumentError(
          absl::StrCat("added token \"", entry.content, "\" has the id ", id, ", but no token has the id ", size));
    }
    if (id < size && definition->tokens[id] != entry.content) {
      return absl::InvalidArgumentError(absl::StrCat("added token \"", entry.content, "\" has the id ", id,
                                                     " of the token \"", definition->tokens[id], "\""));
    }
    if (id == size) {
      definition->tokens.push_back(entry.content);
      definition->token_types.push_back(TokenType::kUserDefined);
      if (!definition->scores.empty()) definition->scores.push_back(0);
    }
    TokenType& type = definition->token_types[id];
    if (entry.is_special) {
      type = TokenType::kControl;
    } else if (type == TokenType::kNormal) {
      type = TokenType::kUserDefined;
    }
  }
  return absl::OkStatus();
}

// Which words the class of tokenizer makes of text.
absl::Status ChooseByClass(const std::string& name, TokenizerDefinition* definition) {
  if (definition->kind != TokenizerDefinition::Kind::kByteLevelBpe) return absl::OkStatus();
  if (name == "Qwen2Tokenizer" || name == "Qwen2TokenizerFast") {
    definition->pre_tokenizer = "qwen2";
    return absl::OkStatus();
  }
  for (const char* gpt2 :
       {"", "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizer", "PreTrainedTokenizerFast"}) {
    if (name == gpt2) return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat(
      "tokenizer_class \"", name, "\" is not supported without tokenizer.json; save it with the transformers library"));
}

absl::Status ApplyConfig(const json& config, TokenizerDefinition* definition) {
  QST_ASSIGN_OR_RETURN(const std::string name, GetString(config, "tokenizer_class", ""));
  QST_RETURN_IF_ERROR(ChooseByClass(name, definition));
  const bool is_sentence_piece = definition->kind == TokenizerDefinition::Kind::kSentencePieceBpe;
  QST_ASSIGN_OR_RETURN(definition->add_bos, GetBool(config, "add_bos_token", is_sentence_piece));
  QST_ASSIGN_OR_RETURN(definition->add_eos, GetBool(config, "add_eos_token", false));
  if (is_sentence_piece) {
    QST_ASSIGN_OR_RETURN(definition->add_space_prefix,
                         GetBool(config, "add_prefix_space", definition->add_space_prefix));
    QST_ASSIGN_OR_RETURN(const bool is_legacy, GetBool(config, "legacy", true));
    definition->prefixes_start_only = !is_legacy;
    return absl::OkStatus();
  }
  QST_ASSIGN_OR_RETURN(const bool adds_space, GetBool(config, "add_prefix_space", false));
  if (adds_space) return absl::UnimplementedError("add_prefix_space is not supported without tokenizer.json");
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyTokenizerSettings(const TokenizerFiles& files, const std::string& added_tokens_json,
                                    TokenizerDefinition* definition) {
  QST_ASSIGN_OR_RETURN(const json config, ParseOptional(files.tokenizer_config_json, kConfigFile));
  QST_ASSIGN_OR_RETURN(const json map, ParseOptional(files.special_tokens_map_json, "special_tokens_map.json"));
  QST_ASSIGN_OR_RETURN(const json added, ParseOptional(added_tokens_json, "added_tokens.json"));
  definition->token_types.resize(definition->tokens.size(), TokenType::kNormal);
  std::map<int64_t, AddedEntry> entries;
  QST_RETURN_IF_ERROR(Annotate(CollectFromFile(added, &entries), "added_tokens.json"));
  QST_RETURN_IF_ERROR(Annotate(CollectFromConfig(config, &entries), kConfigFile));
  QST_RETURN_IF_ERROR(AddTokens(entries, definition));
  QST_RETURN_IF_ERROR(Annotate(ApplyConfig(config, definition), kConfigFile));

  absl::flat_hash_map<std::string, int32_t> ids;
  for (size_t id = 0; id < definition->tokens.size(); ++id) ids[definition->tokens[id]] = static_cast<int32_t>(id);
  auto find_special = [&](const std::string& token) -> std::optional<int32_t> {
    const auto it = ids.find(token);
    if (it == ids.end()) return std::nullopt;
    if (definition->token_types[it->second] != TokenType::kUnknown) {
      definition->token_types[it->second] = TokenType::kControl;
    }
    return it->second;
  };
  for (const auto& [key, role] :
       {std::pair("bos_token", &definition->bos_id), std::pair("eos_token", &definition->eos_id),
        std::pair("unk_token", &definition->unk_id), std::pair("pad_token", &definition->pad_id)}) {
    std::optional<std::string> text = TokenText(FindMember(config, key));
    if (!text.has_value()) text = TokenText(FindMember(map, key));
    const std::optional<int32_t> id = text.has_value() ? find_special(*text) : std::nullopt;
    if (id.has_value()) *role = id;
  }
  for (const json* file : {&config, &map}) {
    const json* list = FindMember(*file, "additional_special_tokens");
    for (const json& token : list != nullptr && list->is_array() ? *list : json::array()) {
      if (const std::optional<std::string> text = TokenText(&token)) find_special(*text);
    }
  }
  if (definition->kind == TokenizerDefinition::Kind::kByteLevelBpe && definition->pre_tokenizer == "gpt-2") {
    if (!definition->bos_id.has_value()) definition->bos_id = find_special(kGpt2EndOfText);
    if (!definition->eos_id.has_value()) definition->eos_id = find_special(kGpt2EndOfText);
  }
  if (!definition->bos_id.has_value()) definition->add_bos = false;
  if (!definition->eos_id.has_value()) definition->add_eos = false;
  return absl::OkStatus();
}

absl::StatusOr<std::string> CompleteTokenizerConfig(const TokenizerFiles& files,
                                                    const TokenizerDefinition& definition) {
  if (files.tokenizer_config_json.empty()) return std::string();
  QST_ASSIGN_OR_RETURN(json config, ParseOptional(files.tokenizer_config_json, kConfigFile));
  QST_ASSIGN_OR_RETURN(const json map, ParseOptional(files.special_tokens_map_json, "special_tokens_map.json"));
  if (!config.is_object()) return absl::InvalidArgumentError(absl::StrCat(kConfigFile, ": not an object"));
  bool is_changed = false;
  for (const auto& [key, id] : {std::pair("bos_token", definition.bos_id), std::pair("eos_token", definition.eos_id),
                                std::pair("unk_token", definition.unk_id), std::pair("pad_token", definition.pad_id)}) {
    // A null says that there is none.
    if (!id.has_value() || config.contains(key) || map.contains(key)) continue;
    config[key] = definition.tokens[*id];
    is_changed = true;
  }
  return is_changed ? config.dump(2) + "\n" : files.tokenizer_config_json;
}

}  // namespace qst
