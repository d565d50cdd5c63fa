// Bytes on the data plane: constants and codecs of FORMAT.md, which explains them.
#ifndef QST_WORKER_STREAM_FRAME_H_
#define QST_WORKER_STREAM_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/dtype.h"
#include "kernels/wire_rows.h"
#include "worker/stream/token_pass.h"
#include "worker/stream/transport.h"

namespace qst {

// ---- Tags -------------------------------------------------------------------------------------------------

enum class FrameKind : std::uint8_t { kHeader = 1, kTokens = 2, kResidual = 3, kHiddenStates = 4, kGoodbye = 0xff };

constexpr std::uint64_t kMaxFrameLayer = 0xffff;

// Kind in the top byte, layer in the next two, pass id (modulo 2^40) in the rest.
constexpr Tag MakeTag(FrameKind kind, std::uint64_t pass_id, std::uint64_t layer = 0) {
  return (static_cast<Tag>(kind) << 56) | ((layer & kMaxFrameLayer) << 40) | (pass_id & 0xffffffffffull);
}

// Whether a message of a GPU's memory may follow another between two ranks: by pass, then by layer. Both ends keep to
// it, so that they agree on what the n-th message is.
constexpr bool IsInOrder(Tag before, Tag after) {
  const auto key = [](Tag tag) { return (tag & 0xffffffffffull) << 16 | (tag >> 40 & 0xffff); };
  return key(before) <= key(after);
}

// Between the ends of an NCCL edge: the id of its communicator, from the lower rank to the other; and the number of
// messages that were sent, when no more will be. `is_upward`: the edge goes from the lower rank to the higher one.
constexpr Tag NcclIdTag(bool is_upward) { return MakeTag(FrameKind::kGoodbye, 1, is_upward ? 1 : 0); }
constexpr Tag NcclEndTag(bool is_upward) { return MakeTag(FrameKind::kGoodbye, 2, is_upward ? 1 : 0); }
constexpr std::int64_t kNcclIdBytes = 128;
constexpr std::int64_t kNcclEndBytes = 8;

// ---- Pass header ------------------------------------------------------------------------------------------

constexpr std::uint32_t kHeaderMagic = 0x50545351;  // "QSTP"
constexpr std::uint16_t kHeaderVersion = 1;
constexpr std::int64_t kHeaderBytes = 64;

// The type of a stream's hidden states as a header states it. kUnimplemented: not a wire type (kernels/wire_rows.h).
absl::StatusOr<std::uint8_t> WireDtypeCode(DType dtype);
// The type in which h_f[layer] travels: that of the last layer goes to the head and is never narrower than bf16.
constexpr DType LayerWireDtype(DType wire, std::int64_t layer, std::int64_t num_layers) {
  return layer == num_layers && HasRowScales(wire) ? DType::kBF16 : wire;
}

struct PassHeader {
  bool is_stop = false;  // no pass: the stream has ended
  bool uses_kv_cache = false;
  std::uint64_t pass_id = 0;
  std::uint32_t num_tokens = 0;
  std::uint32_t num_sequences = 0;
  std::uint32_t first_layer = 0;  // states of layers from here on go to the side
  std::uint32_t past_tokens = 0;
  std::uint32_t hidden_size = 0;
  DType wire_dtype = DType::kBF16;
};

// What a header may say.
struct PassLimits {
  std::int64_t max_tokens = 0;  // of one pass
  std::int64_t num_layers = 0;
  std::int64_t hidden_size = 0;
  DType wire_dtype = DType::kBF16;
};

// [kHeaderBytes]
void EncodeHeader(const PassHeader& header, std::uint8_t* out);
// kDataLoss: not a header, or beyond the limits, or not pass `expected_id`; says what.
absl::StatusOr<PassHeader> DecodeHeader(const std::uint8_t* in, std::uint64_t expected_id, const PassLimits& limits);

// ---- Tokens -----------------------------------------------------------------------------------------------

// Bytes of the tokens and offsets of a pass.
constexpr std::int64_t TokensBytes(std::int64_t num_tokens, std::int64_t num_sequences) {
  return 4 * (num_tokens + num_sequences + 1);
}
void EncodeTokens(const TokenPass& pass, std::uint8_t* out);
// kDataLoss: offsets that do not cover the tokens in order.
absl::StatusOr<TokenPass> DecodeTokens(const PassHeader& header, const std::uint8_t* in);
// The same checks on a pass that is to be sent, as kInvalidArgument.
absl::Status CheckPass(const TokenPass& pass, std::int64_t max_tokens);

// ---- Goodbye ----------------------------------------------------------------------------------------------

constexpr std::uint32_t kGoodbyeMagic = 0x42545351;  // "QSTB"
constexpr std::int64_t kGoodbyeBytes = 1024;

// The last words of a rank: OK after a normal end, with a note, else why it aborts. Long messages are cut.
void EncodeGoodbye(const absl::Status& reason, absl::string_view note, std::uint8_t* out);
// The reason as the peer of `name` sees it (see AsPeerReported); what is no UTF-8 in it becomes U+FFFD. kDataLoss: not
// a goodbye.
absl::Status DecodeGoodbye(const std::uint8_t* in, absl::string_view name, absl::Status* reason, std::string* note);

}  // namespace qst

#endif  // QST_WORKER_STREAM_FRAME_H_
