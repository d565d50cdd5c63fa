#include "worker/text/decoder.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
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

// The text of a run of byte tokens: all of it or nothing, as the library does it.
std::string TextOfBytes(const std::string& bytes) {
  if (IsValidUtf8(bytes)) return bytes;
  std::string result;
  for (size_t i = 0; i < bytes.size(); ++i) result += kReplacementCharacter;
  return result;
}

// How many bytes at the start are settled: all but the beginning of a character whose rest may follow.
size_t SettledBytes(absl::string_view bytes) {
  for (size_t tail = 1; tail <= 3 && tail <= bytes.size(); ++tail) {
    const size_t offset = bytes.size() - tail;
    const unsigned char lead = bytes[offset];
    if ((lead & 0xC0) == 0x80) continue;
    const Utf8Char c = Utf8CharAt(bytes, offset);
    const bool is_broken_off_by_end = !c.is_valid && c.num_bytes == tail && lead >= 0xC2 && lead <= 0xF4;
    return is_broken_off_by_end ? offset : bytes.size();
  }
  return bytes.size();
}

std::string StripToken(absl::string_view token, absl::string_view content, int64_t start, int64_t stop) {
  for (int64_t i = 0; i < start && absl::ConsumePrefix(&token, content); ++i) {
  }
  for (int64_t i = 0; i < stop && absl::ConsumeSuffix(&token, content); ++i) {
  }
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
  decoder.ChooseStreaming();
  return decoder;
}

// A step that joins all tokens can hand its text on part by part if the steps after it work on parts.
void Decoder::ChooseStreaming() {
  first_in_parts_ = steps_.size();
  for (size_t i = steps_.size(); i > 0; --i) {
    const Step& step = steps_[i - 1];
    if (std::holds_alternative<ByteLevel>(step) || std::holds_alternative<Fuse>(step)) {
      first_in_parts_ = i;
    } else if (!std::holds_alternative<Strip>(step)) {
      break;
    }
  }
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
    if (strip.content.empty() || Utf8CharAt(strip.content, 0).num_bytes != strip.content.size()) {
      return absl::InvalidArgumentError("Strip: \"content\" is not one character");
    }
    if (strip.start < 0 || strip.stop < 0) return absl::InvalidArgumentError("Strip: a count is negative");
    steps_.push_back(std::move(strip));
  } else if (type == "Replace") {
    QST_ASSIGN_OR_RETURN(ReplaceStep step, ReplaceStep::FromJson(component));
    steps_.push_back(std::move(step));
  } else if (type == "Metaspace") {
    Metaspace metaspace;
    QST_ASSIGN_OR_RETURN(metaspace.replacement, GetString(component, "replacement"));
    if (metaspace.replacement.empty() ||
        Utf8CharAt(metaspace.replacement, 0).num_bytes != metaspace.replacement.size()) {
      return absl::InvalidArgumentError("Metaspace: \"replacement\" is not one character");
    }
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

Decoder::Stream::Stream(const Decoder* decoder) : decoder_(decoder), states_(decoder->steps_.size() + 1) {}

absl::Status Decoder::Stream::Push(size_t i, std::string token, std::string* text) {
  State& state = states_[i];
  if (i == decoder_->steps_.size()) {
    if (decoder_->is_null_ && !state.is_first) *text += ' ';
    state.is_first = false;
    *text += token;
    return absl::OkStatus();
  }
  const Step& step = decoder_->steps_[i];
  const bool hands_parts_on = decoder_->first_in_parts_ <= i + 1;
  if (const ReplaceStep* replace = std::get_if<ReplaceStep>(&step)) {
    QST_ASSIGN_OR_RETURN(token, replace->Apply(token, MaxRewrittenBytes(0)));
    return Push(i + 1, std::move(token), text);
  }
  if (const Metaspace* metaspace = std::get_if<Metaspace>(&step)) {
    const bool drops = state.is_first && metaspace->drops_first;
    state.is_first = false;
    return Push(i + 1, SpacesFromReplacement(token, metaspace->replacement, drops), text);
  }
  if (const Strip* strip = std::get_if<Strip>(&step)) {
    if (decoder_->first_in_parts_ > i)
      return Push(i + 1, StripToken(token, strip->content, strip->start, strip->stop), text);
    absl::string_view rest = token;
    while (state.is_first && state.num_stripped < strip->start && absl::ConsumePrefix(&rest, strip->content)) {
      ++state.num_stripped;
    }
    if (!rest.empty()) state.is_first = false;
    // What may be the end is held back.
    std::string part = absl::StrCat(state.held, rest);
    absl::string_view kept = part;
    for (int64_t n = 0; n < strip->stop && absl::ConsumeSuffix(&kept, strip->content); ++n) {
    }
    state.held = part.substr(kept.size());
    part.resize(kept.size());
    return Push(i + 1, std::move(part), text);
  }
  if (std::holds_alternative<ByteFallback>(step)) {
    if (const std::optional<char> byte = ByteOfToken(token)) {
      state.held += *byte;
      return absl::OkStatus();
    }
    if (!state.held.empty()) {
      QST_RETURN_IF_ERROR(Push(i + 1, TextOfBytes(state.held), text));
      state.held.clear();
    }
    return Push(i + 1, std::move(token), text);
  }
  if (std::holds_alternative<Fuse>(step)) {
    if (hands_parts_on) return Push(i + 1, std::move(token), text);
    state.held += token;
    return absl::OkStatus();
  }
  AppendFromByteLevel(token, &state.held);
  if (!hands_parts_on) return absl::OkStatus();
  const size_t settled = SettledBytes(state.held);
  if (settled == 0) return absl::OkStatus();
  std::string part = ToValidUtf8(absl::string_view(state.held).substr(0, settled));
  state.held.erase(0, settled);
  return Push(i + 1, std::move(part), text);
}

absl::Status Decoder::Stream::Add(absl::string_view token, std::string* text) {
  return Push(0, std::string(token), text);
}

absl::Status Decoder::Stream::Finish(std::string* text) {
  for (size_t i = 0; i < decoder_->steps_.size(); ++i) {
    const Step& step = decoder_->steps_[i];
    std::string held = std::move(states_[i].held);
    states_[i].held.clear();
    // What a strip holds back is what it strips.
    if (held.empty() || std::holds_alternative<Strip>(step)) continue;
    if (std::holds_alternative<ByteFallback>(step)) held = TextOfBytes(held);
    if (std::holds_alternative<ByteLevel>(step)) held = ToValidUtf8(held);
    QST_RETURN_IF_ERROR(Push(i + 1, std::move(held), text));
  }
  return absl::OkStatus();
}

}  // namespace qst
