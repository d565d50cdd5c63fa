// What a peer of the data plane sends: any bytes give an error, or a header within the limits and tokens that make a
// pass, which read back from what we write of them; and any last words give text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "proto/support/status_macros.h"
#include "worker/stream/frame.h"
#include "worker/text/utf8.h"

namespace {

// As many bytes as the receiver expects, from `data` on, filled up with zeros.
std::vector<std::uint8_t> Message(const std::uint8_t* data, std::size_t size, std::int64_t num_bytes) {
  std::vector<std::uint8_t> message(static_cast<std::size_t>(num_bytes));
  std::copy_n(data, std::min(size, message.size()), message.data());
  return message;
}

void CheckTokens(const qst::PassHeader& header, const qst::PassLimits& limits, const std::uint8_t* data,
                 std::size_t size) {
  const auto bytes = Message(data, size, qst::TokensBytes(header.num_tokens, header.num_sequences));
  const auto pass = qst::DecodeTokens(header, bytes.data());
  if (!pass.ok()) {
    QST_CHECK(!pass.status().message().empty());
    return;
  }
  QST_CHECK(qst::CheckPass(*pass, limits.max_tokens).ok());
  std::vector<std::uint8_t> written(bytes.size());
  qst::EncodeTokens(*pass, written.data());
  QST_CHECK(written == bytes);
}

void CheckHeader(const std::uint8_t* data, std::size_t size, qst::DType wire_dtype) {
  qst::PassLimits limits;
  limits.max_tokens = 512;
  limits.num_layers = 24;
  limits.hidden_size = 64;
  limits.wire_dtype = wire_dtype;
  const auto bytes = Message(data, size, qst::kHeaderBytes);
  std::uint64_t pass_id = 0;
  std::memcpy(&pass_id, bytes.data() + 8, sizeof(pass_id));  // as if it were this one's turn
  const auto header = qst::DecodeHeader(bytes.data(), pass_id, limits);
  QST_CHECK(!qst::DecodeHeader(bytes.data(), pass_id + 1, limits).ok());
  if (!header.ok()) {
    QST_CHECK(!header.status().message().empty());
    return;
  }
  std::uint8_t written[qst::kHeaderBytes], again[qst::kHeaderBytes];
  qst::EncodeHeader(*header, written);
  const auto back = qst::DecodeHeader(written, pass_id, limits);
  QST_CHECK(back.ok());
  qst::EncodeHeader(*back, again);
  QST_CHECK(std::memcmp(written, again, sizeof(written)) == 0);
  QST_CHECK(header->is_stop || std::memcmp(written, bytes.data(), 37) == 0);  // what follows is filling
  if (header->is_stop) return;
  const std::size_t taken = std::min(size, bytes.size());
  CheckTokens(*header, limits, data + taken, size - taken);
}

void CheckGoodbye(const std::uint8_t* data, std::size_t size) {
  const auto bytes = Message(data, size, qst::kGoodbyeBytes);
  absl::Status reason;
  std::string note;
  if (!qst::DecodeGoodbye(bytes.data(), "stage 0", &reason, &note).ok()) return;
  // It goes into logs, and to the coordinator in a message, which holds nothing but UTF-8.
  QST_CHECK(qst::IsValidUtf8(note) && qst::IsValidUtf8(reason.message()));
  QST_CHECK(reason.ok() || qst::IsPeerReported(reason));
  std::uint8_t written[qst::kGoodbyeBytes];
  qst::EncodeGoodbye(reason, note, written);
  absl::Status passed_on;
  QST_CHECK(qst::DecodeGoodbye(written, "stage 1", &passed_on, &note).ok());
  QST_CHECK(passed_on.code() == reason.code());
  QST_CHECK(qst::IsValidUtf8(passed_on.message()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  for (const qst::DType wire_dtype : {qst::DType::kBF16, qst::DType::kF32, qst::DType::kI8, qst::DType::kF8E4M3}) {
    CheckHeader(data, size, wire_dtype);
  }
  CheckGoodbye(data, size);
  return 0;
}
