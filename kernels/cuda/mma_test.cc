// The instructions that kernels rely on, one by one, against what mma.cuh says of them. On a GPU it is the hardware
// that is tested, in the shim the definition that takes its place.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/testing/mma_probe.h"
#include "kernels/dtype_convert.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/test_matrix.h"
#include "kernels/testing/test_memory.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

constexpr int kLanes = 32;

class CudaMmaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    stream_ = TestCuda::StreamOrNull();
    if (stream_ == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  }
  std::uint16_t Encode(DType dtype, float value) { return dtype == DType::kBF16 ? F32ToBF16(value) : F32ToF16(value); }
  float Decode(DType dtype, std::uint16_t bits) { return dtype == DType::kBF16 ? BF16ToF32(bits) : F16ToF32(bits); }

  cuda::Stream* stream_ = nullptr;
  Random random_{7};
};

std::uint32_t Pair(std::uint16_t low, std::uint16_t high) { return low | static_cast<std::uint32_t>(high) << 16; }

TEST_F(CudaMmaTest, ProductsOfFragmentsAreProductsOfMatrices) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (int round = 0; round < 20; ++round) {
      std::uint16_t a[16][16];
      std::uint16_t b[16][8];
      float c[16][8];
      for (auto& row : a) {
        for (std::uint16_t& x : row) x = Encode(dtype, static_cast<float>(random_.Normal()));
      }
      for (auto& row : b) {
        for (std::uint16_t& x : row) x = Encode(dtype, static_cast<float>(random_.Normal()));
      }
      for (auto& row : c) {
        for (float& x : row) x = static_cast<float>(random_.Normal());
      }
      TestVector<cuda::MmaOperands> lanes(kLanes);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int g = lane / 4;
        const int t = lane % 4;
        for (int r = 0; r < 4; ++r) {
          const std::uint16_t* const row = a[g + 8 * (r % 2)];
          lanes[lane].a[r] = Pair(row[2 * t + 8 * (r / 2)], row[2 * t + 8 * (r / 2) + 1]);
        }
        for (int r = 0; r < 2; ++r) lanes[lane].b[r] = Pair(b[2 * t + 8 * r][g], b[2 * t + 8 * r + 1][g]);
        for (int i = 0; i < 4; ++i) lanes[lane].c[i] = c[g + 8 * (i / 2)][2 * t + i % 2];
      }
      QST_ASSERT_OK(cuda::ProbeMma(*stream_, dtype, lanes.data()));
      ASSERT_TRUE(SynchronizeTestDevice());
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const int row = lane / 4 + 8 * (i / 2);
          const int column = 2 * (lane % 4) + i % 2;
          double expected = c[row][column];
          double magnitude = std::abs(expected);
          for (int k = 0; k < 16; ++k) {
            const double product = static_cast<double>(Decode(dtype, a[row][k])) * Decode(dtype, b[k][column]);
            expected += product;
            magnitude += std::abs(product);
          }
          // Tensor cores add in float32, some of them with a few bits less.
          ASSERT_NEAR(lanes[lane].c[i], expected, 1e-6 * magnitude) << "lane " << lane << ", element " << i;
        }
      }
    }
  }
}

std::uint32_t BitsOf(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
float FloatOf(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

TEST_F(CudaMmaTest, ProductsOfTf32FragmentsAreProductsOfMatrices) {
  for (int round = 0; round < 20; ++round) {
    float a[16][8], b[8][8], c[16][8];
    // TF32 has 10 bits of mantissa.
    const auto tf32 = [&] { return FloatOf(BitsOf(static_cast<float>(random_.Normal())) & ~0x1fffu); };
    for (auto& row : a) {
      for (float& x : row) x = tf32();
    }
    for (auto& row : b) {
      for (float& x : row) x = tf32();
    }
    for (auto& row : c) {
      for (float& x : row) x = static_cast<float>(random_.Normal());
    }
    TestVector<cuda::MmaOperands> lanes(kLanes);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4;
      const int t = lane % 4;
      for (int r = 0; r < 4; ++r) lanes[lane].a[r] = BitsOf(a[g + 8 * (r % 2)][t + 4 * (r / 2)]);
      for (int r = 0; r < 2; ++r) lanes[lane].b[r] = BitsOf(b[t + 4 * r][g]);
      for (int i = 0; i < 4; ++i) lanes[lane].c[i] = c[g + 8 * (i / 2)][2 * t + i % 2];
    }
    QST_ASSERT_OK(cuda::ProbeMmaTf32(*stream_, lanes.data()));
    ASSERT_TRUE(SynchronizeTestDevice());
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2);
        const int column = 2 * (lane % 4) + i % 2;
        double expected = c[row][column];
        double magnitude = std::abs(expected);
        for (int k = 0; k < 8; ++k) {
          expected += static_cast<double>(a[row][k]) * b[k][column];
          magnitude += std::abs(static_cast<double>(a[row][k]) * b[k][column]);
        }
        ASSERT_NEAR(lanes[lane].c[i], expected, 1e-6 * magnitude) << "lane " << lane << ", element " << i;
      }
    }
  }
}

TEST_F(CudaMmaTest, TwoTf32NumbersMakeAFloat) {
  std::vector<float> values = {0.0f, -0.0f, 1.0f, -2.5f, 1.0009765625f, 1.00048828125f, 3.0e38f, 1e-30f, 0.1f};
  while (values.size() < 1000) values.push_back(static_cast<float>(random_.Normal()));
  const TestVector<float> reachable = Reachable(values);
  const std::int64_t n = static_cast<std::int64_t>(values.size());
  TestVector<std::uint32_t> high(n, ~0u), low(n, ~0u);
  QST_ASSERT_OK(cuda::ProbeSplitTf32(*stream_, reachable.data(), n, high.data(), low.data()));
  ASSERT_TRUE(SynchronizeTestDevice());
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = values[i];
    ASSERT_EQ(high[i] & 0x1fffu, 0u) << x;
    ASSERT_EQ(low[i] & 0x1fffu, 0u) << x;
    ASSERT_NEAR(FloatOf(high[i]), x, std::ldexp(std::abs(x), -11)) << x;
    ASSERT_NEAR(static_cast<double>(FloatOf(high[i])) + FloatOf(low[i]), x, std::ldexp(std::abs(x), -22)) << x;
  }
  // Half-way between two of TF32: away from zero.
  EXPECT_EQ(FloatOf(high[5]), 1.0009765625f);
}

TEST_F(CudaMmaTest, MatricesAreLoadedAsTheyAreAndTransposed) {
  TestVector<std::uint16_t> rows(kLanes * 8);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint16_t>(0x100 + i);
  for (const bool transposed : {false, true}) {
    TestVector<cuda::Registers4> out(kLanes, {{~0u, ~0u, ~0u, ~0u}});
    QST_ASSERT_OK(cuda::ProbeLoadMatrices(*stream_, transposed, rows.data(), out.data()));
    ASSERT_TRUE(SynchronizeTestDevice());
    const auto element = [&](int m, int row, int column) { return rows[(8 * m + row) * 8 + column]; };
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4;
      const int t = lane % 4;
      for (int m = 0; m < 4; ++m) {
        const std::uint32_t expected = transposed ? Pair(element(m, 2 * t, g), element(m, 2 * t + 1, g))
                                                  : Pair(element(m, g, 2 * t), element(m, g, 2 * t + 1));
        ASSERT_EQ(out[lane].r[m], expected) << "lane " << lane << ", matrix " << m << ", transposed " << transposed;
      }
    }
  }
}

TEST_F(CudaMmaTest, AsynchronousCopiesAreThereOnceTheirGroupWasWaitedFor) {
  TestVector<std::uint16_t> in(2 * kLanes * 8);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint16_t>(1 + i);
  TestVector<std::uint8_t> is_valid(2 * kLanes);
  for (std::size_t i = 0; i < is_valid.size(); ++i) is_valid[i] = i % 5 != 0;
  TestVector<std::uint16_t> out(in.size(), 0xffff);
  QST_ASSERT_OK(cuda::ProbeCopyAsync(*stream_, in.data(), is_valid.data(), out.data()));
  ASSERT_TRUE(SynchronizeTestDevice());
  for (std::size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], is_valid[i / 8] != 0 ? in[i] : 0) << "element " << i;
  }
}

TEST_F(CudaMmaTest, PairsAreRoundedToNearestEvenLowHalfFirst) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0.0f,     -0.0f, 1.0f,      -2.5f,  1.00390625f, 1.01171875f, 65504.0f,
                               65520.0f, 1e-8f, kInfinity, -1e30f, 1e-41f,      3.0f};
  while (values.size() < 1001) values.push_back(static_cast<float>(random_.Normal()));
  values.push_back(-kInfinity);
  const TestVector<float> reachable = Reachable(values);
  const std::int64_t n = static_cast<std::int64_t>(values.size() / 2);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    TestVector<std::uint32_t> out(n, ~0u);
    QST_ASSERT_OK(cuda::ProbePackPair(*stream_, dtype, reachable.data(), n, out.data()));
    ASSERT_TRUE(SynchronizeTestDevice());
    for (std::int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(out[i], Pair(Encode(dtype, values[2 * i]), Encode(dtype, values[2 * i + 1])))
          << DTypeName(dtype) << " of " << values[2 * i] << ", " << values[2 * i + 1];
    }
  }
}

}  // namespace
}  // namespace qst
