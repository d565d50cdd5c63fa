#include "worker/text/decoder.h"

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/support/status_macros.h"
#include "worker/text/byte_level.h"
#include "worker/text/json_util.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;

// The byte that a token such as "<0x0A>" stands for.
std::optional<char> ByteOfToken(absl::string_view token) {
  uint32_t byte = 0;
  if (token.size() != 6 || !absl::StartsWith(token, "<0x") || token.back() != '>') return std::nullopt;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return std::nullopt;
    byte = byte * 16 + digit;
  }
  return static_cast<char>(byte);
}

std::vector<std::string> JoinByteTokens(std::vector<std::string> tokens) {
  std::vector<std::string> result;
  std::string bytes;
  auto flush = [&] {
    if (bytes.empty()) return;
    if (IsValidUtf8(bytes)) {
      result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), kReplacementCharacter);
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const std::optional<char> byte = ByteOfToken(token)) {
      bytes.push_back(*byte);
      continue;
    }
    flush();
    result.push_back(std::move(token));
  }
  flush();
  return result;
}

std::string StripToken(absl::string_view token, absl::string_view content, int64_t start, int64_t stop) {
  for (int64_t i = 0; i < start && absl::StartsWith(token, content); ++i) token.remove_prefix(content.size());
  for (int64_t i = 0; i < stop && absl::EndsWith(token, content); ++i) token.remove_suffix(content.size());
  return std::string(token);
}

std::string SpacesFromReplacement(absl::string_view token, absl::string_view replacement, bool drop) {
  std::string result;
  for (size_t i = 0; i < token.size();) {
    if (absl::StartsWith(token.substr(i), replacement)) {
      if (!drop) result += ' ';
      i += replacement.size();
    } else {
      result += token[i++];
    }
  }
  return result;
}

}  // namespace

absl::StatusOr<Decoder> Decoder::FromJson(const json* component) {
  Decoder decoder;
  if (component == nullptr) return decoder;
  decoder.is_null_ = false;
  QST_RETURN_IF_ERROR(decoder.Append(*component, 0));
  return decoder;
}

absl::Status Decoder::Append(const json& component, int depth) {
  if (depth > kMaxDepth) return absl::InvalidArgumentError("sequences are nested too deep");
  QST_ASSIGN_OR_RETURN(const std::string type, GetString(component, "type"));
  if (type == "Sequence") {
    const json* parts = FindMember(component, "decoders");
    if (parts == nullptr || !parts->is_array()) return absl::InvalidArgumentError("no array \"decoders\"");
    for (const json& part : *parts) QST_RETURN_IF_ERROR(Append(part, depth + 1));
    return absl::OkStatus();
  }
  if (type == "ByteLevel") {
    steps_.push_back(ByteLevel{});
  } else if (type == "ByteFallback") {
    steps_.push_back(ByteFallback{});
  } else if (type == "Fuse") {
    steps_.push_back(Fuse{});
  } else if (type == "Strip") {
    Strip strip;
    QST_ASSIGN_OR_RETURN(strip.content, GetString(component, "content"));
    QST_ASSIGN_OR_RETURN(strip.start, GetInt(component, "start"));
    QST_ASSIGN_OR_RETURN(strip.stop, GetInt(component, "stop"));
    if (strip.content.empty()) return absl::InvalidArgumentError("Strip: \"content\" is empty");
    steps_.push_back(std::move(strip));
  } else if (type == "Replace") {
    QST_ASSIGN_OR_RETURN(ReplaceStep step, ReplaceStep::FromJson(component));
    steps_.push_back(std::move(step));
  } else if (type == "Metaspace") {
    Metaspace metaspace;
    QST_ASSIGN_OR_RETURN(metaspace.replacement, GetString(component, "replacement"));
    if (metaspace.replacement.empty()) return absl::InvalidArgumentError("Metaspace: \"replacement\" is empty");
    QST_ASSIGN_OR_RETURN(const bool add_prefix_space, GetBool(component, "add_prefix_space", true));
    QST_ASSIGN_OR_RETURN(const std::string scheme,
                         GetString(component, "prepend_scheme", add_prefix_space ? "always" : "never"));
    metaspace.drops_first = scheme != "never";
    steps_.push_back(std::move(metaspace));
  } else {
    return absl::UnimplementedError(absl::StrCat("type \"", type, "\" is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Decoder::ApplyStep(const Step& step, std::vector<std::string> tokens) {
  if (std::holds_alternative<ByteFallback>(step)) return JoinByteTokens(std::move(tokens));
  if (std::holds_alternative<Fuse>(step)) return std::vector<std::string>{absl::StrJoin(tokens, "")};
  if (std::holds_alternative<ByteLevel>(step)) {
    std::string bytes;
    for (const std::string& token : tokens) AppendFromByteLevel(token, &bytes);
    return std::vector<std::string>{ToValidUtf8(bytes)};
  }
  bool is_first = true;
  for (std::string& token : tokens) {
    if (const Strip* strip = std::get_if<Strip>(&step)) {
      token = StripToken(token, strip->content, strip->start, strip->stop);
    } else if (const Metaspace* metaspace = std::get_if<Metaspace>(&step)) {
      token = SpacesFromReplacement(token, metaspace->replacement, is_first && metaspace->drops_first);
    } else {
      QST_ASSIGN_OR_RETURN(token, std::get<ReplaceStep>(step).Apply(token));
    }
    is_first = false;
  }
  return tokens;
}

absl::StatusOr<std::string> Decoder::Apply(std::vector<std::string> tokens) const {
  if (is_null_) return absl::StrJoin(tokens, " ");
  for (const Step& step : steps_) {
    QST_ASSIGN_OR_RETURN(tokens, ApplyStep(step, std::move(tokens)));
  }
  return absl::StrJoin(tokens, "");
}

}  // namespace qst
