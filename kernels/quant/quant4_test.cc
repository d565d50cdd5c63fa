#include "kernels/quant/quant4.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/codes.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr Quant4Type kTypes[] = {Quant4Type::kNF4, Quant4Type::kFP4};

std::vector<float> Dequantized(const Quant4Tensor& tensor) {
  std::vector<float> values(tensor.rows * tensor.cols);
  DequantizeRange(tensor.view(), 0, tensor.rows * tensor.cols, values.data());
  return values;
}

Quant4Tensor Quantized(const std::vector<float>& weights, const Quant4Options& options) {
  return Quantize4Bit(weights.data(), 1, weights.size(), options).value();
}

std::vector<float> Normal(std::int64_t n, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// Half the widest gap between neighbouring values of the table: the largest error relative to absmax.
double LargestError(Quant4Type type) {
  std::vector<float> table(Quant4Table(type), Quant4Table(type) + 16);
  std::sort(table.begin(), table.end());
  double gap = 0.0;
  for (int i = 0; i < 15; ++i) gap = std::max<double>(gap, table[i + 1] - table[i]);
  return gap / 2;
}

TEST(CodesTest, EveryTableValueHasItsOwnCode) {
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(Quant4Code(Quant4Type::kNF4, Quant4Table(Quant4Type::kNF4)[code]), code);
    // FP4's code 8 is what small negative values get; its value, -0, is not below zero.
    EXPECT_EQ(Quant4Code(Quant4Type::kFP4, Quant4Table(Quant4Type::kFP4)[code]), code == 8 ? 0 : code);
  }
  for (int code = 0; code < 256; ++code) EXPECT_EQ(DynamicMap8Code(DynamicMap8()[code]), code);
}

TEST(CodesTest, TheNearestValueIsTaken) {
  for (const Quant4Type type : kTypes) {
    const float* table = Quant4Table(type);
    for (int i = -1000; i <= 1000; ++i) {
      const float x = static_cast<float>(i) / 1000.0f;
      double best = 2.0;
      for (int code = 0; code < 16; ++code) best = std::min<double>(best, std::fabs(x - table[code]));
      // The thresholds are rounded midpoints, so next to one the other neighbour may be as good.
      EXPECT_LE(std::fabs(x - table[Quant4Code(type, x)]), best + 1e-6) << x;
    }
  }
  const float* map = DynamicMap8();
  for (int i = -2000; i <= 2000; ++i) {
    const float x = static_cast<float>(i) / 2000.0f;
    double best = 2.0;
    for (int code = 0; code < 256; ++code) best = std::min<double>(best, std::fabs(x - map[code]));
    EXPECT_LE(std::fabs(x - map[DynamicMap8Code(x)]), best + 1e-7) << x;
  }
}

TEST(CodesTest, TheEightBitCodeOfATieIsEven) {
  const float* map = DynamicMap8();
  for (int lower = 0; lower < 255; ++lower) {
    const float middle = (map[lower] + map[lower + 1]) * 0.5f;
    EXPECT_EQ(DynamicMap8Code(middle), lower % 2 == 0 ? lower : lower + 1) << lower;
    EXPECT_EQ(DynamicMap8Code(std::nextafter(middle, -2.0f)), lower) << lower;
    EXPECT_EQ(DynamicMap8Code(std::nextafter(middle, 2.0f)), lower + 1) << lower;
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float x : {-1.0f, -2.0f, -kInfinity, std::nanf("")}) EXPECT_EQ(DynamicMap8Code(x), 0) << x;
  for (const float x : {1.0f, 2.0f, kInfinity}) EXPECT_EQ(DynamicMap8Code(x), 255) << x;
}

TEST(CodesTest, OnAThresholdTheLowerMagnitudeOrCodeIsTaken) {
  EXPECT_EQ(Quant4Code(Quant4Type::kNF4, 0.03979014977812767f), 7);
  EXPECT_EQ(Quant4Code(Quant4Type::kNF4, std::nextafter(0.03979014977812767f, 1.0f)), 8);
  EXPECT_EQ(Quant4Code(Quant4Type::kFP4, 0.8333333f), 2);
  EXPECT_EQ(Quant4Code(Quant4Type::kFP4, std::nextafter(0.8333333f, 1.0f)), 3);
  EXPECT_EQ(Quant4Code(Quant4Type::kFP4, -0.8333333f), 10);
}

TEST(CodesTest, TheRuleGivesEveryCode) {
  for (const Quant4Type type : kTypes) {
    const Quant4Rule rule = Quant4RuleOf(type);
    for (float x : Normal(1000, 4)) {
      x *= 25.0f;
      const float ranked = rule.of_magnitude ? std::fabs(x) : x;
      int rank = 0;
      for (int i = 0; i < rule.num_thresholds; ++i) rank += ranked > rule.thresholds[i] ? 1 : 0;
      EXPECT_EQ(rule.code_of_rank[rank] + (x < 0.0f ? rule.sign : 0), Quant4Code(type, x)) << x;
    }
  }
}

TEST(CodesTest, ManyCodesAtOnceAreThoseOfOneAtATime) {
  std::vector<float> x = Normal(1001, 3);
  for (float& value : x) value *= 20.0f;
  x[500] = std::numeric_limits<float>::quiet_NaN();
  for (const Quant4Type type : kTypes) {
    std::vector<std::uint8_t> codes(x.size());
    Quant4Codes(type, x.data(), x.size(), codes.data());
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(codes[i], Quant4Code(type, x[i])) << i;
  }
}

// FNV-1a over the bits of the map that bitsandbytes' create_dynamic_map gives with PyTorch 2.9 on an AVX2
// machine, and a few of its values.
TEST(CodesTest, DynamicMapHasThePublishedBits) {
  const float* map = DynamicMap8();
  EXPECT_TRUE(std::is_sorted(map, map + 256));
  EXPECT_EQ(map[127], 0.0f);
  EXPECT_EQ(map[255], 1.0f);
  EXPECT_FLOAT_EQ(map[0], -0.9929687f);
  EXPECT_FLOAT_EQ(map[128], 5.5e-7f);
  std::uint64_t hash = 14695981039346656037u;
  for (int i = 0; i < 256; ++i) {
    const std::uint32_t bits = FloatBits(map[i]);
    for (int shift = 0; shift < 32; shift += 8) {
      hash ^= bits >> shift & 0xff;
      hash *= 1099511628211u;
    }
  }
  EXPECT_EQ(hash, 15454086911070985156u);
}

TEST(CodesTest, DynamicMapOfAnotherMachineIsKnownByItsValues) {
  std::vector<float> map(DynamicMap8(), DynamicMap8() + 256);
  EXPECT_TRUE(IsDynamicMap8(map.data()));
  for (float& value : map) value = std::nextafter(value, value < 0 ? -2.0f : 2.0f);
  map[127] = 0.0f;
  EXPECT_TRUE(IsDynamicMap8(map.data()));
  for (const float bad : {1e-6f, -0.99f, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> changed = map;
    changed[127] = bad;
    EXPECT_FALSE(IsDynamicMap8(changed.data())) << bad;
  }
}

TEST(Quantize4BitTest, FlatBlocksAreExact) {
  for (const Quant4Type type : kTypes) {
    for (const float value : {0.0f, 0.37f, -1e-20f, 3e30f}) {
      Quant4Options options;
      options.type = type;
      options.double_quant = false;
      for (const float actual : Dequantized(Quantized(std::vector<float>(200, value), options))) {
        EXPECT_EQ(actual, value);
      }
    }
  }
}

TEST(Quantize4BitTest, ZeroBlocksAmongOthersStayZero) {
  std::vector<float> weights = Normal(64 * 4, 1);
  std::fill(weights.begin() + 64, weights.begin() + 128, 0.0f);
  for (const Quant4Type type : kTypes) {
    Quant4Options options;
    options.type = type;
    options.double_quant = false;
    const std::vector<float> actual = Dequantized(Quantized(weights, options));
    for (int i = 64; i < 128; ++i) EXPECT_EQ(actual[i], 0.0f);
    // Also where double quantization leaves them a constant that is not zero.
    options.double_quant = true;
    const Quant4Tensor nested = Quantized(weights, options);
    EXPECT_NE(BlockAbsmax(nested.view(), 1), 0.0f);
    const std::vector<float> actual_nested = Dequantized(nested);
    for (int i = 64; i < 128; ++i) EXPECT_EQ(actual_nested[i], 0.0f);
  }
}

TEST(Quantize4BitTest, ErrorsAreWithinHalfTheWidestGap) {
  std::vector<std::vector<float>> data;
  std::vector<float> ramp, tails = Normal(5000, 5);
  for (int i = 0; i < 1000; ++i) ramp.push_back(static_cast<float>(i) - 500.0f);
  for (float& value : tails) value = value * value * value * 1e6f;
  data = {ramp, tails, Normal(4097, 2), Normal(1, 3), Normal(63, 4), Normal(65, 4)};
  for (const Quant4Type type : kTypes) {
    for (const int block_size : {64, 128, 4096}) {
      for (const std::vector<float>& weights : data) {
        Quant4Options options;
        options.type = type;
        options.block_size = block_size;
        options.double_quant = false;
        const Quant4Tensor tensor = Quantized(weights, options);
        ASSERT_EQ(tensor.absmax.size(), (weights.size() + block_size - 1) / block_size);
        const std::vector<float> actual = Dequantized(tensor);
        for (std::size_t i = 0; i < weights.size(); ++i) {
          EXPECT_LE(std::fabs(actual[i] - weights[i]), tensor.absmax[i / block_size] * (LargestError(type) + 1e-6));
        }
      }
    }
  }
}

TEST(Quantize4BitTest, NibblesAreHighFirstAndAnOddEndIsPadded) {
  Quant4Options options;
  options.double_quant = false;
  const Quant4Tensor tensor = Quantized({-1.0f, 1.0f, 0.0f}, options);
  ASSERT_EQ(tensor.packed.size(), 2u);
  EXPECT_EQ(tensor.packed[0], 0x0f);
  EXPECT_EQ(tensor.packed[1], 0x77);  // with the code of zero
}

TEST(Quantize4BitTest, DoubleQuantizationKeepsConstantsWithinItsCodesError) {
  const std::vector<float> weights = Normal(64 * 1000 + 7, 9);
  Quant4Options options;
  options.double_quant = false;
  const Quant4Tensor plain = Quantized(weights, options);
  options.double_quant = true;
  const Quant4Tensor nested = Quantized(weights, options);
  EXPECT_EQ(nested.packed, plain.packed);
  ASSERT_EQ(nested.absmax_codes.size(), plain.absmax.size());
  EXPECT_TRUE(nested.absmax.empty());
  EXPECT_EQ(nested.nested_absmax.size(), 4u);
  double mean = 0.0;
  for (const float absmax : plain.absmax) mean += absmax;
  EXPECT_FLOAT_EQ(nested.nested_offset, mean / static_cast<double>(plain.absmax.size()));
  const Quant4View view = nested.view();
  for (std::size_t b = 0; b < plain.absmax.size(); ++b) {
    // The map's widest gap between neighbours is 0.0141.
    EXPECT_LE(std::fabs(BlockAbsmax(view, b) - plain.absmax[b]), 0.00704 * nested.nested_absmax[b / 256] + 1e-9) << b;
  }
  EXPECT_LT(nested.size_bytes(), plain.size_bytes());
}

TEST(Quantize4BitTest, ConstantsMadeElsewhereAreDoubleQuantizedLikeItsOwn) {
  const std::vector<float> weights = Normal(64 * 300 + 7, 10);
  Quant4Options options;
  const Quant4Tensor expected = Quantized(weights, options);
  options.double_quant = false;
  Quant4Tensor tensor = Quantized(weights, options);
  QST_ASSERT_OK(DoubleQuantize(&tensor));
  EXPECT_TRUE(tensor.double_quant);
  EXPECT_TRUE(tensor.absmax.empty());
  EXPECT_EQ(tensor.absmax_codes, expected.absmax_codes);
  EXPECT_EQ(tensor.nested_absmax, expected.nested_absmax);
  EXPECT_EQ(tensor.nested_offset, expected.nested_offset);
}

TEST(Quantize4BitTest, ConstantsThatAreNotFiniteAreRefusedByBlock) {
  Quant4Options options;
  options.double_quant = false;
  Quant4Tensor tensor = Quantized(Normal(64 * 20, 15), options);
  tensor.absmax[17] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(DoubleQuantize(&tensor), StatusIs(absl::StatusCode::kInvalidArgument,
                                                AllOf(HasSubstr("block 17"), HasSubstr("elements from 1088"))));
  EXPECT_EQ(tensor.absmax.size(), 20u);
  EXPECT_FALSE(tensor.double_quant);
}

TEST(Quantize4BitTest, QuantizingWhatWasQuantizedChangesNoValue) {
  for (const Quant4Type type : kTypes) {
    Quant4Options options;
    options.type = type;
    options.double_quant = false;
    const Quant4Tensor once = Quantized(Normal(64 * 50, 11), options);
    const Quant4Tensor twice = Quantized(Dequantized(once), options);
    EXPECT_EQ(Dequantized(twice), Dequantized(once));  // -0 equals 0
    EXPECT_EQ(twice.absmax, once.absmax);
  }
}

TEST(Quantize4BitTest, AnyRangeDequantizesToTheSameValues) {
  const Quant4Tensor tensor = Quantized(Normal(1001, 12), Quant4Options());
  const std::vector<float> all = Dequantized(tensor);
  for (const auto& [begin, count] : {std::pair<int, int>{0, 1}, {1, 1}, {63, 3}, {5, 900}, {1000, 1}, {7, 0}}) {
    std::vector<float> part(3 * count, -7.0f);
    DequantizeRange(tensor.view(), begin, count, part.data(), 3);
    for (int i = 0; i < count; ++i) {
      EXPECT_EQ(part[3 * i], all[begin + i]);
      EXPECT_EQ(part[3 * i + 1], -7.0f);
    }
  }
}

TEST(Quantize4BitTest, NonFiniteWeightsAreRefusedByIndex) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    std::vector<float> weights = Normal(10 * 50, 13);
    weights[321] = bad;
    weights[400] = bad;
    EXPECT_THAT(Quantize4Bit(weights.data(), 10, 50, Quant4Options()),
                StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("element 321"), HasSubstr("row 6"))));
  }
}

TEST(Quantize4BitTest, OptionsAreChecked) {
  const float weight = 1.0f;
  for (const int block_size : {0, -64, 32, 65, 96, 8192}) {
    Quant4Options options;
    options.block_size = block_size;
    EXPECT_THAT(Quantize4Bit(&weight, 1, 1, options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::to_string(block_size))));
  }
  EXPECT_THAT(Quantize4Bit(&weight, -1, 1, Quant4Options()), StatusIs(absl::StatusCode::kInvalidArgument));
  const auto empty = Quantize4Bit(nullptr, 0, 5, Quant4Options());
  QST_ASSERT_OK(empty);
  QST_EXPECT_OK(CheckQuant4View(empty->view()));
}

TEST(Quant4ViewTest, BrokenViewsAreRefused) {
  const Quant4Tensor tensor = Quantized(Normal(128, 14), Quant4Options());
  QST_EXPECT_OK(CheckQuant4View(tensor.view()));
  const auto is_invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  Quant4View view = tensor.view();
  view.packed = nullptr;
  EXPECT_THAT(CheckQuant4View(view), is_invalid);
  view = tensor.view();
  view.absmax_codes = nullptr;
  EXPECT_THAT(CheckQuant4View(view), is_invalid);
  view = tensor.view();
  view.nested_map = nullptr;
  EXPECT_THAT(CheckQuant4View(view), is_invalid);
  view = tensor.view();
  view.block_size = 0;
  EXPECT_THAT(CheckQuant4View(view), is_invalid);
  view = tensor.view();
  view.nested_block_size = 0;
  EXPECT_THAT(CheckQuant4View(view), is_invalid);
}

}  // namespace
}  // namespace qst
