#include "worker/stream/frame.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

constexpr std::uint16_t kFlagStop = 1;
constexpr std::uint16_t kFlagKvCache = 2;
constexpr std::uint32_t kGoodbyeRelayed = 1;
constexpr std::int64_t kGoodbyeHead = 16;

// Ranks run the same build on little-endian machines; the layout is fixed all the same.
template <typename T>
void Put(std::uint8_t* out, std::int64_t offset, T value) {
  std::memcpy(out + offset, &value, sizeof(T));
}
template <typename T>
T Take(const std::uint8_t* in, std::int64_t offset) {
  T value;
  std::memcpy(&value, in + offset, sizeof(T));
  return value;
}

// What is wrong with the offsets of a pass of num_tokens tokens; empty if nothing.
std::string OffsetsError(const std::vector<std::int32_t>& offsets, std::int64_t num_tokens) {
  if (offsets.size() < 2) return "a pass needs at least one sequence";
  if (offsets.front() != 0) return absl::StrCat("the first offset is ", offsets.front(), ", not 0");
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] < offsets[i - 1]) {
      return absl::StrCat("offset ", i, " falls from ", offsets[i - 1], " to ", offsets[i]);
    }
  }
  if (offsets.back() != num_tokens) {
    return absl::StrCat("the last offset is ", offsets.back(), ", but there are ", num_tokens, " tokens");
  }
  return "";
}

// Code i + 1 stands for entry i.
constexpr DType kWireDtypes[] = {DType::kBF16, DType::kF32, DType::kI8, DType::kF8E4M3};

// 0: not a wire type.
std::uint8_t CodeOf(DType dtype) {
  const auto* const found = std::find(std::begin(kWireDtypes), std::end(kWireDtypes), dtype);
  return found == std::end(kWireDtypes) ? 0 : static_cast<std::uint8_t>(found - kWireDtypes + 1);
}

}  // namespace

absl::StatusOr<std::uint8_t> WireDtypeCode(DType dtype) {
  if (const std::uint8_t code = CodeOf(dtype); code != 0) return code;
  return absl::UnimplementedError(
      absl::StrCat("hidden states cannot travel as ", DTypeName(dtype), "; use bf16, f32, i8 or f8_e4m3"));
}

void EncodeHeader(const PassHeader& header, std::uint8_t* out) {
  std::memset(out, 0, kHeaderBytes);
  Put<std::uint32_t>(out, 0, kHeaderMagic);
  Put<std::uint16_t>(out, 4, kHeaderVersion);
  Put<std::uint16_t>(out, 6, (header.is_stop ? kFlagStop : 0) | (header.uses_kv_cache ? kFlagKvCache : 0));
  Put<std::uint64_t>(out, 8, header.pass_id);
  Put<std::uint32_t>(out, 16, header.num_tokens);
  Put<std::uint32_t>(out, 20, header.num_sequences);
  Put<std::uint32_t>(out, 24, header.first_layer);
  Put<std::uint32_t>(out, 28, header.past_tokens);
  Put<std::uint32_t>(out, 32, header.hidden_size);
  Put<std::uint8_t>(out, 36, CodeOf(header.wire_dtype));
}

absl::StatusOr<PassHeader> DecodeHeader(const std::uint8_t* in, std::uint64_t expected_id, const PassLimits& limits) {
  if (Take<std::uint32_t>(in, 0) != kHeaderMagic) return absl::DataLossError("pass header: wrong magic number");
  const auto version = Take<std::uint16_t>(in, 4);
  if (version != kHeaderVersion) {
    return absl::DataLossError(absl::StrCat("pass header: version ", version, ", this build speaks ", kHeaderVersion));
  }
  const auto flags = Take<std::uint16_t>(in, 6);
  if ((flags & ~(kFlagStop | kFlagKvCache)) != 0) {
    return absl::DataLossError(absl::StrCat("pass header: unknown flags ", flags));
  }
  PassHeader header;
  header.is_stop = (flags & kFlagStop) != 0;
  header.uses_kv_cache = (flags & kFlagKvCache) != 0;
  header.pass_id = Take<std::uint64_t>(in, 8);
  if (header.pass_id != expected_id) {
    return absl::DataLossError(absl::StrCat("pass header: pass ", header.pass_id, " came instead of ", expected_id));
  }
  if (header.is_stop) return header;
  header.num_tokens = Take<std::uint32_t>(in, 16);
  header.num_sequences = Take<std::uint32_t>(in, 20);
  header.first_layer = Take<std::uint32_t>(in, 24);
  header.past_tokens = Take<std::uint32_t>(in, 28);
  header.hidden_size = Take<std::uint32_t>(in, 32);
  const auto code = Take<std::uint8_t>(in, 36);
  if (header.num_tokens < 1 || header.num_tokens > limits.max_tokens) {
    return absl::DataLossError(
        absl::StrCat("pass header: ", header.num_tokens, " tokens, allowed are 1 to ", limits.max_tokens));
  }
  if (header.num_sequences < 1 || header.num_sequences > limits.max_tokens) {
    return absl::DataLossError(
        absl::StrCat("pass header: ", header.num_sequences, " sequences, allowed are 1 to ", limits.max_tokens));
  }
  if (header.uses_kv_cache && header.num_sequences != 1) {
    return absl::DataLossError(
        absl::StrCat("pass header: ", header.num_sequences, " sequences with a KV cache, which holds one"));
  }
  if (header.first_layer > limits.num_layers) {
    return absl::DataLossError(
        absl::StrCat("pass header: states from layer ", header.first_layer, " of ", limits.num_layers));
  }
  if (header.hidden_size != limits.hidden_size) {
    return absl::DataLossError(
        absl::StrCat("pass header: hidden size ", header.hidden_size, ", this stage has ", limits.hidden_size));
  }
  if (code < 1 || code > std::size(kWireDtypes)) {
    return absl::DataLossError(absl::StrCat("pass header: wire type ", code));
  }
  header.wire_dtype = kWireDtypes[code - 1];
  if (header.wire_dtype != limits.wire_dtype) {
    return absl::DataLossError(absl::StrCat("pass header: wire type ", DTypeName(header.wire_dtype), ", the plan says ",
                                            DTypeName(limits.wire_dtype)));
  }
  if (header.past_tokens > 0x7fffffffu - header.num_tokens) {
    return absl::DataLossError(absl::StrCat("pass header: ", header.past_tokens, " past tokens"));
  }
  return header;
}

void EncodeTokens(const TokenPass& pass, std::uint8_t* out) {
  const std::size_t token_bytes = pass.tokens.size() * 4;
  std::memcpy(out, pass.tokens.data(), token_bytes);
  std::memcpy(out + token_bytes, pass.offsets.data(), pass.offsets.size() * 4);
}

absl::StatusOr<TokenPass> DecodeTokens(const PassHeader& header, const std::uint8_t* in) {
  TokenPass pass;
  pass.id = header.pass_id;
  pass.uses_kv_cache = header.uses_kv_cache;
  pass.past_tokens = static_cast<std::int32_t>(header.past_tokens);
  pass.tokens.resize(header.num_tokens);
  pass.offsets.resize(static_cast<std::size_t>(header.num_sequences) + 1);
  std::memcpy(pass.tokens.data(), in, pass.tokens.size() * 4);
  std::memcpy(pass.offsets.data(), in + pass.tokens.size() * 4, pass.offsets.size() * 4);
  const std::string error = OffsetsError(pass.offsets, pass.num_tokens());
  if (!error.empty()) return absl::DataLossError(absl::StrCat("tokens of pass ", header.pass_id, ": ", error));
  return pass;
}

absl::Status CheckPass(const TokenPass& pass, std::int64_t max_tokens) {
  const std::string where = absl::StrCat("pass ", pass.id, ": ");
  if (pass.tokens.empty()) return absl::InvalidArgumentError(absl::StrCat(where, "no tokens"));
  if (pass.num_tokens() > max_tokens || pass.num_sequences() > max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(where, pass.num_tokens(), " tokens in ", pass.num_sequences(),
                                                   " sequences, allowed are ", max_tokens));
  }
  const std::string error = OffsetsError(pass.offsets, pass.num_tokens());
  if (!error.empty()) return absl::InvalidArgumentError(absl::StrCat(where, error));
  if (pass.uses_kv_cache && pass.num_sequences() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(where, "a KV cache holds one sequence, not ", pass.num_sequences()));
  }
  if (pass.past_tokens < 0) return absl::InvalidArgumentError(absl::StrCat(where, pass.past_tokens, " past tokens"));
  return absl::OkStatus();
}

void EncodeGoodbye(const absl::Status& reason, absl::string_view note, std::uint8_t* out) {
  std::memset(out, 0, kGoodbyeBytes);
  const absl::string_view message = reason.ok() ? note : reason.message();
  const std::size_t length = std::min(message.size(), static_cast<std::size_t>(kGoodbyeBytes - kGoodbyeHead));
  Put<std::uint32_t>(out, 0, kGoodbyeMagic);
  Put<std::uint32_t>(out, 4, static_cast<std::uint32_t>(reason.code()));
  Put<std::uint32_t>(out, 8, static_cast<std::uint32_t>(length));
  Put<std::uint32_t>(out, 12, IsPeerReported(reason) ? kGoodbyeRelayed : 0);
  std::memcpy(out + kGoodbyeHead, message.data(), length);
}

absl::Status DecodeGoodbye(const std::uint8_t* in, absl::string_view name, absl::Status* reason, std::string* note) {
  const auto code = Take<std::uint32_t>(in, 4);
  const auto length = Take<std::uint32_t>(in, 8);
  if (Take<std::uint32_t>(in, 0) != kGoodbyeMagic || code > 16 || length > kGoodbyeBytes - kGoodbyeHead) {
    return absl::DataLossError(absl::StrCat(name, " sent a goodbye that is none"));
  }
  // Reports to the coordinator hold UTF-8 only; and a message may have been cut within a character.
  const std::string message = ToValidUtf8(absl::string_view(reinterpret_cast<const char*>(in) + kGoodbyeHead, length));
  if (code == 0) {
    *reason = absl::OkStatus();
    *note = message;
    return absl::OkStatus();
  }
  const absl::Status sent(static_cast<absl::StatusCode>(code), message);
  const bool is_relayed = Take<std::uint32_t>(in, 12) == kGoodbyeRelayed;
  *reason = AsPeerReported(sent, is_relayed ? "" : name);
  return absl::OkStatus();
}

}  // namespace qst
