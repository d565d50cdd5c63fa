// The portable path and the AVX2 path of quantization give the same bits: codes, constants, errors, sums.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "kernels/quant/quant4_error.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

constexpr Quant4Type kTypes[] = {Quant4Type::kNF4, Quant4Type::kFP4};
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();

class Quant4IsaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!ResolveIsa(CpuIsa::kAvx2).ok()) GTEST_SKIP() << "no AVX2 here";
  }
};

template <typename T>
bool SameBytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// `weights` and a copy that is aligned to nothing, with every guard behind them a NaN: an element too many that is read
// as if it were one of them would be refused.
absl::StatusOr<Quant4Tensor> Quantized(const std::vector<float>& weights, const Quant4Options& options, CpuIsa isa) {
  std::vector<float> shifted(weights.size() + 65, std::numeric_limits<float>::quiet_NaN());
  std::copy(weights.begin(), weights.end(), shifted.begin() + 1);
  return Quantize4Bit(shifted.data() + 1, 1, static_cast<std::int64_t>(weights.size()), options, isa);
}

void ExpectSameBits(const std::vector<float>& weights, const std::string& what) {
  for (const Quant4Type type : kTypes) {
    for (const int block_size : {64, 128, 256, 4096}) {
      const Quant4Options options = {type, block_size, false};
      const auto portable = Quantized(weights, options, CpuIsa::kPortable);
      const auto avx2 = Quantized(weights, options, CpuIsa::kAvx2);
      QST_ASSERT_OK(portable);
      QST_ASSERT_OK(avx2);
      ASSERT_TRUE(SameBytes(avx2->absmax, portable->absmax)) << what << " " << block_size;
      for (std::size_t i = 0; i < portable->packed.size(); ++i) {
        ASSERT_EQ(avx2->packed[i], portable->packed[i])
            << what << ", type " << static_cast<int>(type) << ", blocks of " << block_size << ", elements "
            << weights[2 * i] << " " << (2 * i + 1 < weights.size() ? weights[2 * i + 1] : 0.0f);
      }
    }
  }
}

// n values of one of the distributions below.
constexpr int kNumDistributions = 9;
std::vector<float> Values(int distribution, std::int64_t n, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) {
    const bool is_rare = random() % 50 == 0;
    switch (distribution) {
      case 0:
        value = 0.02f * normal(random);
        break;
      case 1:
        value = uniform(random);
        break;
      case 2:
        value = std::pow(normal(random), 5.0f);
        break;
      case 3:
        value = is_rare ? normal(random) : 0.0f;
        break;
      case 4:
        value = (random() % 2 == 0 ? 1.0f : -1.0f) * (is_rare ? 0.0f : 3e30f);
        break;
      case 5:
        value = kDenormal * std::round(30.0f * normal(random));
        break;
      case 6:
        value = kLargest * uniform(random);
        break;
      case 7:
        value = (random() % 2 == 0 ? 0.0f : -0.0f) + (is_rare ? -kDenormal : 0.0f);
        break;
      default:  // any finite bits
        do {
          value = BitsToFloat(static_cast<std::uint32_t>(random()));
        } while (!std::isfinite(value));
    }
  }
  return values;
}

TEST_F(Quant4IsaTest, AnyValuesOfAnyNumber) {
  std::mt19937 random(1);
  for (int distribution = 0; distribution < kNumDistributions; ++distribution) {
    for (std::int64_t n = 0; n <= 200; ++n) {
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(Values(distribution, n, random), std::to_string(distribution)));
    }
    for (const std::int64_t n : {4095, 4096, 4097, 20001, 100000}) {
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(Values(distribution, n, random), std::to_string(distribution)));
    }
  }
}

// Around every threshold, multiplied with absmaxes of all kinds: one unit of the last place above and below, in every
// lane.
TEST_F(Quant4IsaTest, ValuesNextToThresholds) {
  std::mt19937 random(2);
  for (const Quant4Type type : kTypes) {
    const Quant4Rule rule = Quant4RuleOf(type);
    for (const float absmax : {1.0f, -1.0f, 0.0371f, 3e-38f, 1e-40f, kDenormal, 1e30f, kLargest}) {
      std::vector<float> near = {0.0f, -0.0f, absmax, -absmax, kDenormal, -kDenormal};
      for (int i = 0; i < rule.num_thresholds; ++i) {
        for (const float sign : {1.0f, -1.0f}) {
          const float value = sign * rule.thresholds[i] * absmax;
          for (const float end : {-kLargest, kLargest}) {
            near.push_back(value);
            near.push_back(std::nextafter(value, end));
            near.push_back(std::nextafter(std::nextafter(value, end), end));
          }
        }
      }
      const float magnitude = std::fabs(absmax);
      for (float& value : near) value = std::max(-magnitude, std::min(magnitude, value));
      for (int round = 0; round < 8; ++round) {
        std::vector<float> weights;
        for (int block = 0; block < 64; ++block) {
          for (int i = 0; i < 64; ++i) weights.push_back(near[random() % near.size()]);
          weights[weights.size() - 1 - random() % 64] = absmax;
        }
        ASSERT_NO_FATAL_FAILURE(ExpectSameBits(weights, std::to_string(absmax)));
      }
    }
  }
}

// In blocks whose absmax is 1 elements are not rounded on their way to the thresholds: each value gets its own code.
TEST_F(Quant4IsaTest, CodesAreThoseOfTheRule) {
  for (const Quant4Type type : kTypes) {
    const Quant4Rule rule = Quant4RuleOf(type);
    std::vector<float> values;
    for (int i = 0; i < rule.num_thresholds; ++i) {
      for (const float threshold : {rule.thresholds[i], -rule.thresholds[i]}) {
        values.insert(values.end(), {threshold, std::nextafter(threshold, -2.0f), std::nextafter(threshold, 2.0f)});
      }
    }
    for (std::size_t first = 0; first < values.size(); ++first) {
      std::vector<float> block(64, 1.0f);
      for (std::size_t i = 1; i < 64; ++i) block[i] = values[(first + i) % values.size()];
      const auto tensor = Quantized(block, {type, 64, false}, CpuIsa::kAvx2);
      QST_ASSERT_OK(tensor);
      for (std::size_t i = 0; i < 64; ++i) {
        EXPECT_EQ(tensor->packed[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15, Quant4Code(type, block[i])) << block[i];
      }
    }
  }
}

TEST_F(Quant4IsaTest, RefusalsNameTheSameElement) {
  std::mt19937 random(3);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(), BitsToFloat(0xff800001u)}) {
    for (const Quant4Type type : kTypes) {
      for (int round = 0; round < 100; ++round) {
        const std::int64_t n = 1 + random() % 400;
        std::vector<float> weights = Values(0, n, random);
        const std::size_t at = random() % weights.size();
        weights[at] = bad;
        if (round % 2 == 0) weights.back() = bad;
        const absl::Status portable = Quantized(weights, {type, 64, false}, CpuIsa::kPortable).status();
        const absl::Status avx2 = Quantized(weights, {type, 64, false}, CpuIsa::kAvx2).status();
        EXPECT_EQ(avx2, portable);
        EXPECT_THAT(avx2, StatusIs(absl::StatusCode::kInvalidArgument,
                                   testing::HasSubstr("element " + std::to_string(at) + " ")));
      }
    }
  }
}

TEST_F(Quant4IsaTest, PiecesGiveTheSameBitsAsTheWhole) {
  std::mt19937 random(4);
  for (const CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2}) {
    const std::vector<float> weights = Values(0, 3 * 4096 + 77, random);
    const std::int64_t n = static_cast<std::int64_t>(weights.size());
    const Quant4Options options = {Quant4Type::kNF4, 128, true};
    const auto whole = Quantize4Bit(weights.data(), 1, n, options, isa);
    QST_ASSERT_OK(whole);
    auto builder = Quant4Builder::Create(1, n, options, isa);
    QST_ASSERT_OK(builder);
    EXPECT_THAT(builder->Append(weights.data(), 64), StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_THAT(builder->Append(weights.data(), n + 1), StatusIs(absl::StatusCode::kFailedPrecondition));
    std::int64_t done = 0;
    for (const std::int64_t count : {128, 0, 1280, 4096}) {
      QST_ASSERT_OK(builder->Append(weights.data() + done, count));
      done += count;
    }
    std::vector<float> last(weights.begin() + done, weights.end());
    last[500] = std::numeric_limits<float>::infinity();
    EXPECT_THAT(builder->Append(last.data(), n - done),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         testing::HasSubstr("element " + std::to_string(done + 500) + " (row 0")));
    QST_ASSERT_OK(builder->Append(weights.data() + done, n - done));
    const auto pieces = builder->Finish();
    QST_ASSERT_OK(pieces);
    EXPECT_TRUE(SameBytes(pieces->packed, whole->packed));
    EXPECT_TRUE(SameBytes(pieces->absmax_codes, whole->absmax_codes));
    EXPECT_TRUE(SameBytes(pieces->nested_absmax, whole->nested_absmax));
    EXPECT_EQ(pieces->nested_offset, whole->nested_offset);
  }
  auto unfinished = Quant4Builder::Create(2, 64, Quant4Options());
  QST_ASSERT_OK(unfinished);
  EXPECT_THAT(unfinished->Finish(), StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("128")));
}

// Squared error and squared norm, fed in pieces, against a sum over all elements.
TEST_F(Quant4IsaTest, ErrorsHaveTheSameBitsAndAreThoseOfTheDefinition) {
  std::mt19937 random(5);
  for (const Quant4Type type : kTypes) {
    for (const bool double_quant : {false, true}) {
      for (const std::int64_t n : {0, 1, 7, 8, 63, 64, 65, 1000, 12345, 64 * 64 * 3 + 9}) {
        const std::vector<float> weights = Values(0, n, random);
        const auto tensor = Quantize4Bit(weights.data(), 1, n, {type, 64, double_quant});
        QST_ASSERT_OK(tensor);
        std::vector<float> restored(weights.size());
        DequantizeRange(tensor->view(), 0, n, restored.data());
        double expected_error = 0.0, expected_norm = 0.0;
        for (std::size_t i = 0; i < weights.size(); ++i) {
          const double difference = static_cast<double>(restored[i]) - static_cast<double>(weights[i]);
          expected_error += difference * difference;
          expected_norm += static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
        }
        Quant4Error portable(tensor->view());
        QST_ASSERT_OK(portable.Append(weights.data(), n, CpuIsa::kPortable));
        Quant4Error avx2(tensor->view());
        const std::int64_t first = n / 2 / 64 * 64;
        QST_ASSERT_OK(avx2.Append(weights.data(), first, CpuIsa::kAvx2));
        QST_ASSERT_OK(avx2.Append(weights.data() + first, n - first, CpuIsa::kAvx2));
        EXPECT_EQ(avx2.squared_error(), portable.squared_error()) << n;
        EXPECT_EQ(avx2.squared_norm(), portable.squared_norm()) << n;
        EXPECT_NEAR(avx2.squared_error(), expected_error, 1e-13 * expected_error) << n;
        EXPECT_NEAR(avx2.squared_norm(), expected_norm, 1e-13 * expected_norm) << n;
        if (n > 1) {
          EXPECT_GT(avx2.squared_error(), 0.0);
        }
        EXPECT_THAT(avx2.Append(weights.data(), 1), StatusIs(absl::StatusCode::kFailedPrecondition));
      }
    }
  }
}

}  // namespace
}  // namespace qst
