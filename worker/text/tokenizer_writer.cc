// ToTokenizerFiles: a definition as Hugging Face files.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"
#include "worker/text/tokenizer_files.h"
#include "worker/text/utf8.h"
#include "worker/text/word_scanner.h"

namespace qst {
namespace {

using TokenType = TokenizerDefinition::TokenType;
using IdsByToken = absl::flat_hash_map<std::string, int32_t>;

// Longer than any real token; finding a token's merges takes time quadratic in its length.
constexpr size_t kMaxTokenBytes = 1024;
constexpr char kSpaceSubstitute[] = "\xE2\x96\x81";  // U+2581

constexpr char kByteLevelWithRegex[] =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
constexpr char kByteLevelWithoutRegex[] =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false})";
struct PreTokenizerChoice {
  std::string json;
  bool ignore_merges = false;
  std::string normalizer = "null";
};

// A split by a pattern, then bytes.
std::string SplitThenByteLevel(WordPattern pattern) {
  return absl::StrCat(R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":)",
                      ToJsonString(WordPatternText(pattern)), R"(},"behavior":"Isolated","invert":false},)",
                      kByteLevelWithoutRegex, "]}");
}

absl::StatusOr<PreTokenizerChoice> ChoosePreTokenizer(const std::string& name) {
  for (const char* plain : {"gpt-2", "mpt", "olmo", "phi-2", "jais"}) {
    if (name == plain) return PreTokenizerChoice{kByteLevelWithRegex, false};
  }
  for (const char* digits : {"smollm", "starcoder", "refact", "command-r", "codeshell"}) {
    if (name == digits) {
      return PreTokenizerChoice{
          absl::StrCat(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)",
                       kByteLevelWithRegex, "]}"),
          false};
    }
  }
  for (const char* llama3 : {"llama-bpe", "llama-v3", "llama3"}) {
    if (name == llama3) {
      return PreTokenizerChoice{SplitThenByteLevel(WordPattern::kLlama3), true};
    }
  }
  if (name == "qwen2") {
    return PreTokenizerChoice{SplitThenByteLevel(WordPattern::kQwen2), false, R"({"type":"NFC"})"};
  }
  if (name.empty() || name == "default") {
    return absl::UnimplementedError(
        "the tokenizer does not say how it splits text into words (tokenizer.ggml.pre); convert the model again "
        "with a tool that writes it, or import the Hugging Face folder");
  }
  return absl::UnimplementedError(absl::StrCat("pre-tokenizer \"", name, "\" is not supported"));
}

TokenType TypeOf(const TokenizerDefinition& definition, size_t id) {
  return definition.token_types.empty() ? TokenType::kNormal : definition.token_types[id];
}

absl::StatusOr<IdsByToken> CheckTokens(const TokenizerDefinition& definition) {
  const size_t count = definition.tokens.size();
  if (count == 0) return absl::InvalidArgumentError("the tokenizer has no tokens");
  if (!definition.token_types.empty() && definition.token_types.size() != count) {
    return absl::InvalidArgumentError(
        absl::StrCat(definition.token_types.size(), " token types for ", count, " tokens"));
  }
  if (definition.kind == TokenizerDefinition::Kind::kSentencePieceBpe && definition.scores.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat(definition.scores.size(), " scores for ", count, " tokens"));
  }
  for (size_t id = 0; id < definition.scores.size(); ++id) {
    if (std::isnan(definition.scores[id])) return absl::InvalidArgumentError(absl::StrCat("score ", id, " is NaN"));
  }
  IdsByToken ids;
  ids.reserve(count);
  for (size_t id = 0; id < count; ++id) {
    const std::string& token = definition.tokens[id];
    if (token.size() > kMaxTokenBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " has ", token.size(), " bytes, more than ", kMaxTokenBytes));
    }
    if (!IsValidUtf8(token)) return absl::InvalidArgumentError(absl::StrCat("token ", id, " is not UTF-8"));
    const auto [it, is_new] = ids.emplace(token, static_cast<int32_t>(id));
    if (!is_new) return absl::InvalidArgumentError(absl::StrCat("tokens ", it->second, " and ", id, " are equal"));
  }
  for (const auto& [name, id] : {std::pair("bos", definition.bos_id), std::pair("eos", definition.eos_id),
                                 std::pair("unk", definition.unk_id), std::pair("pad", definition.pad_id)}) {
    if (id.has_value() && (*id < 0 || *id >= static_cast<int64_t>(count))) {
      return absl::InvalidArgumentError(absl::StrCat(name, " id ", *id, " is not below ", count));
    }
  }
  if (definition.add_bos && !definition.bos_id.has_value()) {
    return absl::InvalidArgumentError("BOS is to be added, but there is no BOS token");
  }
  if (definition.add_eos && !definition.eos_id.has_value()) {
    return absl::InvalidArgumentError("EOS is to be added, but there is no EOS token");
  }
  return ids;
}

// SentencePiece merges the two neighbours whose joint piece scores best. As a list: every way to cut a
// piece into two pieces, best score first; equal ones by id, then by the left part's length, so that the
// list is the same everywhere.
struct RankedMerges {
  std::vector<std::string> merges;
  // Of each merge, the first with the same score: among equals the leftmost goes first. Empty if all scores differ.
  std::vector<size_t> ranks;
};

RankedMerges MergesFromScores(const TokenizerDefinition& definition, const IdsByToken& ids) {
  struct Merge {
    float score;
    int32_t result;
    uint32_t left_bytes;
  };
  // Only normal pieces come about by merging: the others are matched first, or stand for bytes.
  auto is_normal = [&](absl::string_view piece) {
    const auto it = ids.find(piece);
    return it != ids.end() && TypeOf(definition, it->second) == TokenType::kNormal;
  };
  std::vector<Merge> found;
  for (size_t id = 0; id < definition.tokens.size(); ++id) {
    if (TypeOf(definition, id) != TokenType::kNormal) continue;
    const absl::string_view piece = definition.tokens[id];
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      if ((piece[cut] & 0xC0) == 0x80) continue;  // within a character
      if (!is_normal(piece.substr(0, cut)) || !is_normal(piece.substr(cut))) continue;
      found.push_back({definition.scores[id], static_cast<int32_t>(id), static_cast<uint32_t>(cut)});
    }
  }
  std::sort(found.begin(), found.end(), [](const Merge& a, const Merge& b) {
    return std::tuple(-a.score, a.result, a.left_bytes) < std::tuple(-b.score, b.result, b.left_bytes);
  });
  RankedMerges result;
  result.merges.reserve(found.size());
  bool has_equals = false;
  for (size_t i = 0; i < found.size(); ++i) {
    const absl::string_view piece = definition.tokens[found[i].result];
    result.merges.push_back(absl::StrCat("[", ToJsonString(piece.substr(0, found[i].left_bytes)), ",",
                                         ToJsonString(piece.substr(found[i].left_bytes)), "]"));
    const bool is_equal = i > 0 && found[i].score == found[i - 1].score;
    has_equals = has_equals || is_equal;
    result.ranks.push_back(is_equal ? result.ranks.back() : i);
  }
  if (!has_equals) result.ranks.clear();
  return result;
}

absl::StatusOr<std::vector<std::string>> MergesFromLines(const TokenizerDefinition& definition, const IdsByToken& ids) {
  std::vector<std::string> merges;
  merges.reserve(definition.merges.size());
  for (const std::string& line : definition.merges) {
    const size_t space = line.find(' ');
    const absl::string_view left = absl::string_view(line).substr(0, space);
    const absl::string_view right =
        space == std::string::npos ? absl::string_view() : absl::string_view(line).substr(space + 1);
    if (!ids.contains(left) || !ids.contains(right) || !ids.contains(absl::StrCat(left, right))) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", merges.size(), " (", ToJsonString(line), ") is not two tokens that make a third"));
    }
    merges.push_back(absl::StrCat("[", ToJsonString(left), ",", ToJsonString(right), "]"));
  }
  return merges;
}

std::string AddedTokensJson(const TokenizerDefinition& definition) {
  std::vector<std::string> entries;
  for (size_t id = 0; id < definition.tokens.size(); ++id) {
    const TokenType type = TypeOf(definition, id);
    bool is_special = type == TokenType::kControl || type == TokenType::kUnknown;
    for (const std::optional<int32_t>& role : {definition.bos_id, definition.eos_id, definition.pad_id}) {
      is_special = is_special || role == static_cast<int32_t>(id);
    }
    if (!is_special && type != TokenType::kUserDefined) continue;
    const std::string& token = definition.tokens[id];
    if (token.empty()) continue;
    const bool is_late = !is_special && static_cast<int64_t>(id) < definition.late_user_defined_end;
    std::string normalized = is_late ? R"("normalized":true,"normalized_content":)" : R"("normalized":false)";
    if (is_late) {
      // Where the spaces are still spaces in the normalized text.
      absl::StrAppend(
          &normalized,
          ToJsonString(definition.prefixes_start_only ? absl::StrReplaceAll(token, {{kSpaceSubstitute, " "}}) : token));
    }
    entries.push_back(absl::StrCat(R"({"id":)", id, R"(,"content":)", ToJsonString(token),
                                   R"(,"single_word":false,"lstrip":false,"rstrip":false,)", normalized,
                                   R"(,"special":)", is_special ? "true" : "false", "}"));
  }
  return absl::StrCat("[", absl::StrJoin(entries, ",\n"), "]");
}

// What SentencePiece's normalizer does with spaces; without its prefix where a pre-tokenizer puts it.
std::string SpaceNormalizerJson(const TokenizerDefinition& definition) {
  std::vector<std::string> steps;
  if (definition.removes_extra_spaces) {
    // A U+2581 of the text's own goes at the end, too. Possessive and looking behind: otherwise a long run of spaces
    // would be tried from each of its places.
    for (const auto& [pattern, content] : {std::pair("(?<![ \xE2\x96\x81])[ \xE2\x96\x81]++\\\\z", ""),
                                           std::pair("\\\\A ++", ""), std::pair(" {2,}", " ")}) {
      steps.push_back(
          absl::StrCat(R"({"type":"Replace","pattern":{"Regex":")", pattern, R"("},"content":")", content, R"("})"));
    }
  }
  const std::string space = ToJsonString(kSpaceSubstitute);
  if (!definition.prefixes_start_only) {
    if (definition.add_space_prefix) steps.push_back(absl::StrCat(R"({"type":"Prepend","prepend":)", space, "}"));
    steps.push_back(absl::StrCat(R"({"type":"Replace","pattern":{"String":" "},"content":)", space, "}"));
  }
  if (steps.empty()) return "null";
  return absl::StrCat(R"({"type":"Sequence","normalizers":[)", absl::StrJoin(steps, ","), "]}");
}

std::string PostProcessorJson(const TokenizerDefinition& definition) {
  if (!definition.add_bos && !definition.add_eos) return "null";
  auto token = [&](int32_t id, int type) {
    return absl::StrCat(R"({"SpecialToken":{"id":)", ToJsonString(definition.tokens[id]), R"(,"type_id":)", type, "}}");
  };
  auto sequence = [&](const char* name, int type) {
    std::vector<std::string> parts;
    if (definition.add_bos) parts.push_back(token(*definition.bos_id, type));
    parts.push_back(absl::StrCat(R"({"Sequence":{"id":")", name, R"(","type_id":)", type, "}}"));
    if (definition.add_eos) parts.push_back(token(*definition.eos_id, type));
    return absl::StrJoin(parts, ",");
  };
  std::vector<int32_t> used;
  if (definition.add_bos) used.push_back(*definition.bos_id);
  if (definition.add_eos && !(definition.add_bos && definition.eos_id == definition.bos_id)) {
    used.push_back(*definition.eos_id);
  }
  std::vector<std::string> special;
  for (const int32_t id : used) {
    const std::string text = ToJsonString(definition.tokens[id]);
    special.push_back(absl::StrCat(text, R"(:{"id":)", text, R"(,"ids":[)", id, R"(],"tokens":[)", text, "]}"));
  }
  return absl::StrCat(R"({"type":"TemplateProcessing","single":[)", sequence("A", 0), R"(],"pair":[)", sequence("A", 0),
                      ",", sequence("B", 1), R"(],"special_tokens":{)", absl::StrJoin(special, ","), "}}");
}

std::string ConfigJson(const TokenizerDefinition& definition) {
  nlohmann::json config;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["clean_up_tokenization_spaces"] = false;
  config["add_bos_token"] = definition.add_bos;
  config["add_eos_token"] = definition.add_eos;
  for (const auto& [name, id] :
       {std::pair("bos_token", definition.bos_id), std::pair("eos_token", definition.eos_id),
        std::pair("unk_token", definition.unk_id), std::pair("pad_token", definition.pad_id)}) {
    if (id.has_value()) config[name] = definition.tokens[*id];
  }
  if (!definition.chat_template.empty()) config["chat_template"] = ToValidUtf8(definition.chat_template);
  return config.dump(2) + "\n";
}

}  // namespace

absl::StatusOr<TokenizerFiles> ToTokenizerFiles(const TokenizerDefinition& definition) {
  QST_ASSIGN_OR_RETURN(const IdsByToken ids, CheckTokens(definition));
  const bool is_sentence_piece = definition.kind == TokenizerDefinition::Kind::kSentencePieceBpe;
  std::string normalizer = "null", pre_tokenizer = "null", decoder, unk = "null", ranks;
  std::vector<std::string> merges;
  bool ignore_merges = false, byte_fallback = false;
  if (is_sentence_piece) {
    RankedMerges ranked = MergesFromScores(definition, ids);
    merges = std::move(ranked.merges);
    if (!ranked.ranks.empty()) ranks = absl::StrCat(",\n\"merge_ranks\":[", absl::StrJoin(ranked.ranks, ","), "]");
    const std::string space = ToJsonString(kSpaceSubstitute);
    normalizer = SpaceNormalizerJson(definition);
    if (definition.prefixes_start_only) {
      pre_tokenizer = absl::StrCat(R"({"type":"Metaspace","replacement":)", space, R"(,"prepend_scheme":")",
                                   definition.add_space_prefix ? "first" : "never", R"(","split":false})");
    }
    decoder =
        absl::StrCat(R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":)", space,
                     R"(},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"})",
                     definition.add_space_prefix ? R"(,{"type":"Strip","content":" ","start":1,"stop":0})" : "", "]}");
    std::optional<int32_t> unk_id = definition.unk_id;
    for (size_t id = 0; id < definition.tokens.size(); ++id) {
      const TokenType type = TypeOf(definition, id);
      byte_fallback = byte_fallback || type == TokenType::kByte;
      if (type == TokenType::kUnknown && !unk_id.has_value()) unk_id = static_cast<int32_t>(id);
    }
    byte_fallback = byte_fallback || ids.contains("<0x00>");
    if (unk_id.has_value()) unk = ToJsonString(definition.tokens[*unk_id]);
  } else {
    QST_ASSIGN_OR_RETURN(merges, MergesFromLines(definition, ids));
    QST_ASSIGN_OR_RETURN(const PreTokenizerChoice choice, ChoosePreTokenizer(definition.pre_tokenizer));
    pre_tokenizer = choice.json;
    ignore_merges = choice.ignore_merges;
    normalizer = choice.normalizer;
    decoder = kByteLevelWithRegex;
  }
  std::vector<std::string> vocabulary;
  vocabulary.reserve(definition.tokens.size());
  for (size_t id = 0; id < definition.tokens.size(); ++id) {
    vocabulary.push_back(absl::StrCat(ToJsonString(definition.tokens[id]), ":", id));
  }
  auto boolean = [](bool value) { return value ? "true" : "false"; };
  TokenizerFiles files;
  files.tokenizer_json = absl::StrCat(
      R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":)", AddedTokensJson(definition),
      ",\n\"normalizer\":", normalizer, ",\n\"pre_tokenizer\":", pre_tokenizer,
      ",\n\"post_processor\":", PostProcessorJson(definition), ",\n\"decoder\":", decoder,
      ",\n\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":", unk,
      R"(,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":)", boolean(is_sentence_piece),
      R"(,"byte_fallback":)", boolean(byte_fallback), R"(,"ignore_merges":)", boolean(ignore_merges), ",\n\"vocab\":{",
      absl::StrJoin(vocabulary, ",\n"), "},\n\"merges\":[", absl::StrJoin(merges, ",\n"), "]", ranks, "}}\n");
  files.tokenizer_config_json = ConfigJson(definition);
  return files;
}

}  // namespace qst
