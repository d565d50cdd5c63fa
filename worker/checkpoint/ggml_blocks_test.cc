#include "worker/checkpoint/ggml_blocks.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/safetensors_reader.h"

namespace qst {
namespace {

constexpr char kGoldenFile[] = "worker/checkpoint/testdata/ggml_blocks.safetensors";

// Golden values come from the reference implementation (testdata/make_golden.py): they must agree to the bit.
TEST(GgmlBlocksTest, RandomBlocksOfEveryTypeHaveTheReferenceValues) {
  const auto golden = SafetensorsReader::Open(kGoldenFile);
  QST_ASSERT_OK(golden);
  int num_types = 0;
  for (std::uint32_t number = 0; number < 64; ++number) {
    const GgmlTypeTraits* traits = FindGgmlType(number);
    if (traits == nullptr || traits->block_elems == 1) continue;
    ++num_types;
    const auto blocks = (*golden)->Raw(absl::StrCat(traits->name, ".blocks"));
    const std::string values_name = absl::StrCat(traits->name, ".values");
    ASSERT_NE(blocks.data, nullptr) << traits->name;
    const std::int64_t num_blocks = static_cast<std::int64_t>(blocks.num_bytes) / traits->block_bytes;
    ASSERT_EQ(num_blocks, 4);
    std::vector<float> expected(static_cast<std::size_t>(num_blocks * traits->block_elems));
    ASSERT_EQ((*golden)->Find(values_name)->num_elems, static_cast<std::int64_t>(expected.size()));
    QST_ASSERT_OK((*golden)->ReadFloat(values_name, 0, static_cast<std::int64_t>(expected.size()), expected.data()));
    std::vector<float> actual(expected.size(), NAN);
    DequantizeGgmlBlocks(traits->type, blocks.data, num_blocks, actual.data());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(FloatBits(actual[i]), FloatBits(expected[i])) << traits->name << " element " << i;
    }
  }
  EXPECT_EQ(num_types, 8);
}

TEST(GgmlBlocksTest, PlainFloatsAreConvertedExactly) {
  const std::uint8_t f16[] = {0x00, 0x3c, 0xff, 0x7b};  // 1, 65504
  float out[2];
  DequantizeGgmlBlocks(GgmlType::kF16, f16, 2, out);
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], 65504.0f);
  const std::uint8_t bf16[] = {0x80, 0x3f, 0x49, 0xc0};  // 1, -3.140625
  DequantizeGgmlBlocks(GgmlType::kBF16, bf16, 2, out);
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], -3.140625f);
  const float f32[] = {0.1f, -1e-40f};
  DequantizeGgmlBlocks(GgmlType::kF32, reinterpret_cast<const std::uint8_t*>(f32), 2, out);
  EXPECT_EQ(std::memcmp(out, f32, sizeof(f32)), 0);
}

// One block worked out by hand, so that the golden file is not the only witness.
TEST(GgmlBlocksTest, AQ4_0BlockByHand) {
  std::uint8_t block[18] = {0x00, 0x40};  // scale 2
  block[2] = 0x1f;                        // element 0: 15 - 8 = 7; element 16: 1 - 8 = -7
  block[17] = 0x80;                       // element 15: 0 - 8 = -8; element 31: 8 - 8 = 0
  float out[32];
  DequantizeGgmlBlocks(GgmlType::kQ4_0, block, 1, out);
  EXPECT_EQ(out[0], 14.0f);
  EXPECT_EQ(out[16], -14.0f);
  EXPECT_EQ(out[15], -16.0f);
  EXPECT_EQ(out[31], 0.0f);
}

TEST(GgmlBlocksTest, TypesAreNamedAlsoIfUnsupported) {
  EXPECT_EQ(GgmlTypeName(12), "Q4_K");
  EXPECT_EQ(GgmlTypeName(11), "Q3_K");
  EXPECT_EQ(GgmlTypeName(4711), "type 4711");
  EXPECT_EQ(FindGgmlType(11), nullptr);
}

}  // namespace
}  // namespace qst
