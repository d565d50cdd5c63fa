// Accuracy of the vector exponential, seen through the row kernel that stores its values.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/loss_kernels.h"
#include "kernels/device.h"

namespace qst {
namespace {

std::vector<float> ExpOf(std::vector<float> x) {
  cpu::avx2::SumOfExp(x.data(), static_cast<std::int64_t>(x.size()), 0.0f, /*keep=*/true);
  return x;
}

// Distance in units in the last place of the exact value.
double UnitsOff(float actual, double exact) {
  const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
  return std::abs(static_cast<double>(actual) - exact) / unit;
}

TEST(ExpTest, IsWithinOneUnitInTheLastPlaceDownToTheSmallestNormalNumber) {
  if (!ResolveIsa(CpuIsa::kAvx2).ok()) GTEST_SKIP() << "this machine lacks AVX2";
  std::vector<float> x;
  for (int i = 0; i <= 1000000; ++i) x.push_back(-8.73e-5f * static_cast<float>(i));
  for (int i = 1; i <= 1000; ++i) x.push_back(-1e-8f * static_cast<float>(i * i));
  const std::vector<float> y = ExpOf(x);
  double worst = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    worst = std::max(worst, UnitsOff(y[i], std::exp(static_cast<double>(x[i]))));
  }
  EXPECT_LT(worst, 1.0);
  EXPECT_EQ(y[0], 1.0f);
}

TEST(ExpTest, FarBelowZeroBecomesZeroAndNanStays) {
  if (!ResolveIsa(CpuIsa::kAvx2).ok()) GTEST_SKIP() << "this machine lacks AVX2";
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> y = ExpOf({-88.0f, -200.0f, -3e38f, -inf, std::nanf(""), -0.0f, 0.0f});
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_EQ(y[2], 0.0f);
  EXPECT_EQ(y[3], 0.0f);
  EXPECT_TRUE(std::isnan(y[4]));
  EXPECT_EQ(y[5], 1.0f);
  EXPECT_EQ(y[6], 1.0f);
}

}  // namespace
}  // namespace qst
