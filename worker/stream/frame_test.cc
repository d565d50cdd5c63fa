#include "worker/stream/frame.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using testing::HasSubstr;

PassLimits Limits() {
  PassLimits limits;
  limits.max_tokens = 100;
  limits.num_layers = 5;
  limits.hidden_size = 64;
  return limits;
}

PassHeader Header() {
  PassHeader header;
  header.pass_id = 3;
  header.num_tokens = 100;
  header.num_sequences = 2;
  header.first_layer = 5;
  header.hidden_size = 64;
  return header;
}

absl::StatusOr<PassHeader> Decode(const PassHeader& header) {
  std::uint8_t bytes[kHeaderBytes];
  EncodeHeader(header, bytes);
  return DecodeHeader(bytes, 3, Limits());
}

TEST(FrameTest, HeaderSurvivesTheWire) {
  PassHeader header = Header();
  header.num_sequences = 1;
  header.uses_kv_cache = true;
  header.past_tokens = 17;
  const auto decoded = Decode(header);
  QST_ASSERT_OK(decoded);
  EXPECT_EQ(decoded->num_tokens, 100u);
  EXPECT_EQ(decoded->num_sequences, 1u);
  EXPECT_EQ(decoded->first_layer, 5u);
  EXPECT_EQ(decoded->past_tokens, 17u);
  EXPECT_TRUE(decoded->uses_kv_cache);
  EXPECT_FALSE(decoded->is_stop);
  PassHeader stop;
  stop.is_stop = true;
  stop.pass_id = 3;
  ASSERT_TRUE(Decode(stop).ok());
  EXPECT_TRUE(Decode(stop)->is_stop);
}

TEST(FrameTest, HeadersBeyondThePlanAreRefused) {
  struct Case {
    std::function<void(PassHeader&)> change;
    std::string message;
  };
  const std::vector<Case> cases = {
      {[](PassHeader& h) { h.pass_id = 4; }, "pass 4 came instead of 3"},
      {[](PassHeader& h) { h.num_tokens = 101; }, "101 tokens, allowed are 1 to 100"},
      {[](PassHeader& h) { h.num_tokens = 0; }, "0 tokens"},
      {[](PassHeader& h) { h.num_sequences = 0xffffffff; }, "4294967295 sequences"},
      {[](PassHeader& h) { h.num_sequences = 0; }, "0 sequences"},
      {[](PassHeader& h) { h.uses_kv_cache = true; }, "KV cache"},
      {[](PassHeader& h) { h.first_layer = 6; }, "layer 6 of 5"},
      {[](PassHeader& h) { h.hidden_size = 65; }, "hidden size 65"},
      {[](PassHeader& h) { h.wire_dtype = DType::kF32; }, "wire type f32, the plan says bf16"},
      {[](PassHeader& h) { h.past_tokens = 0x7fffffff; }, "past tokens"},
  };
  QST_EXPECT_OK(Decode(Header()));
  for (const Case& c : cases) {
    PassHeader header = Header();
    c.change(header);
    EXPECT_THAT(Decode(header), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(c.message)));
  }
}

TEST(FrameTest, EveryWireTypeSurvivesTheWire) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kI8, DType::kF8E4M3}) {
    PassHeader header = Header();
    header.wire_dtype = dtype;
    std::uint8_t bytes[kHeaderBytes];
    EncodeHeader(header, bytes);
    PassLimits limits = Limits();
    limits.wire_dtype = dtype;
    const auto decoded = DecodeHeader(bytes, 3, limits);
    QST_ASSERT_OK(decoded);
    EXPECT_EQ(decoded->wire_dtype, dtype);
    EXPECT_EQ(bytes[36], WireDtypeCode(dtype).value());
    for (const int code : {0, 5, 255}) {
      bytes[36] = static_cast<std::uint8_t>(code);
      EXPECT_THAT(DecodeHeader(bytes, 3, limits),
                  StatusIs(absl::StatusCode::kDataLoss, HasSubstr(absl::StrCat("wire type ", code))));
    }
  }
  EXPECT_THAT(WireDtypeCode(DType::kF16), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("f16")));
}

TEST(FrameTest, LastLayerIsNeverNarrowerThanBF16) {
  EXPECT_EQ(LayerWireDtype(DType::kI8, 5, 5), DType::kBF16);
  EXPECT_EQ(LayerWireDtype(DType::kF8E4M3, 5, 5), DType::kBF16);
  EXPECT_EQ(LayerWireDtype(DType::kF32, 5, 5), DType::kF32);
  EXPECT_EQ(LayerWireDtype(DType::kI8, 4, 5), DType::kI8);
}

TEST(FrameTest, GarbageIsNotAHeader) {
  std::uint8_t bytes[kHeaderBytes] = {};
  EXPECT_THAT(DecodeHeader(bytes, 0, Limits()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("magic")));
  EncodeHeader(Header(), bytes);
  bytes[4] = 9;
  EXPECT_THAT(DecodeHeader(bytes, 3, Limits()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("version 9")));
  EncodeHeader(Header(), bytes);
  bytes[7] = 0x80;
  EXPECT_THAT(DecodeHeader(bytes, 3, Limits()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("flags")));
}

TEST(FrameTest, TokensSurviveTheWireAndBadOffsetsAreRefused) {
  TokenPass pass;
  pass.tokens = {5, 6, 7, 8};
  pass.offsets = {0, 1, 4};
  PassHeader header;
  header.num_tokens = 4;
  header.num_sequences = 2;
  std::vector<std::uint8_t> bytes(TokensBytes(4, 2));
  EncodeTokens(pass, bytes.data());
  const auto decoded = DecodeTokens(header, bytes.data());
  QST_ASSERT_OK(decoded);
  EXPECT_EQ(decoded->tokens, pass.tokens);
  EXPECT_EQ(decoded->offsets, pass.offsets);
  for (const std::vector<std::int32_t>& offsets :
       {std::vector<std::int32_t>{1, 2, 4}, {0, 3, 2}, {0, 1, 3}, {0, 1, 5}, {0, -1, 4}}) {
    pass.offsets = offsets;
    EncodeTokens(pass, bytes.data());
    EXPECT_THAT(DecodeTokens(header, bytes.data()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("offset")));
    EXPECT_THAT(CheckPass(pass, 100), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("offset")));
  }
}

TEST(FrameTest, GoodbyesCarryTheReasonAndTheRankWhereItBegan) {
  std::uint8_t bytes[kGoodbyeBytes];
  absl::Status reason;
  std::string note;
  EncodeGoodbye(absl::OkStatus(), "memory: little", bytes);
  QST_ASSERT_OK(DecodeGoodbye(bytes, "stage 0", &reason, &note));
  QST_EXPECT_OK(reason);
  EXPECT_EQ(note, "memory: little");

  EncodeGoodbye(absl::ResourceExhaustedError("no memory"), "", bytes);
  QST_ASSERT_OK(DecodeGoodbye(bytes, "stage 0", &reason, &note));
  EXPECT_THAT(reason, StatusIs(absl::StatusCode::kResourceExhausted, testing::Eq("stage 0: no memory")));

  // Passed on by stage 1: still stage 0's.
  EncodeGoodbye(reason, "", bytes);
  QST_ASSERT_OK(DecodeGoodbye(bytes, "stage 1", &reason, &note));
  EXPECT_THAT(reason, StatusIs(absl::StatusCode::kResourceExhausted, testing::Eq("stage 0: no memory")));
  EXPECT_TRUE(IsPeerReported(reason));

  EncodeGoodbye(absl::InternalError(std::string(5000, 'x')), "", bytes);
  QST_ASSERT_OK(DecodeGoodbye(bytes, "a", &reason, &note));
  EXPECT_EQ(reason.message().size(), 3u + kGoodbyeBytes - 16);

  // Cut within a character of two bytes: what follows of it cannot go into a report.
  EncodeGoodbye(absl::InternalError(absl::StrCat("x", std::string(1006, 'y'), "\xC3\xA9")), "", bytes);
  QST_ASSERT_OK(DecodeGoodbye(bytes, "a", &reason, &note));
  EXPECT_TRUE(IsValidUtf8(reason.message()));
  EXPECT_THAT(std::string(reason.message()), testing::EndsWith("yy\xEF\xBF\xBD"));

  bytes[8] = 0xff;
  bytes[9] = 0xff;
  EXPECT_THAT(DecodeGoodbye(bytes, "stage 0", &reason, &note), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace qst
