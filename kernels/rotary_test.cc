#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ops.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/reference_ops.h"
#include "kernels/testing/test_matrix.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

// As a model with the given rotary base makes them.
std::vector<float> InverseFrequencies(std::int64_t head_dim, double base) {
  std::vector<float> inv_freq;
  for (std::int64_t j = 0; j < head_dim / 2; ++j) {
    inv_freq.push_back(
        static_cast<float>(std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim))));
  }
  return inv_freq;
}

class RotaryTest : public OpTest {
 protected:
  Random random_{61};
};

TEST_P(RotaryTest, MatchesReference) {
  // With 600, a head has more frequencies than a block of a GPU has threads.
  for (const std::int64_t head_dim : {2, 4, 6, 8, 34, 64, 600}) {
    for (const std::int64_t num_heads : {1, 3}) {
      const std::vector<float> inv_freq = InverseFrequencies(head_dim, 10000.0);
      const DMatrix x = random_.NormalMatrix(9, num_heads * head_dim);
      const Indices positions = {0, 1, 2, 3, 100, 8191, 131071, 5, 2000000};
      for (const bool inverse : {false, true}) {
        for (const DType dtype : OperandTypes()) {
          const DMatrix rounded = Rounded(x, dtype);
          TestMatrix actual(rounded, dtype, 3);
          QST_ASSERT_OK(
              Rotary(Context(), actual, num_heads, Reachable(positions).data(), Reachable(inv_freq).data(), inverse));
          const double error = Tolerance(2) + (dtype == DType::kF32 ? 0.0 : RoundingError(dtype));
          EXPECT_TRUE(IsClose(actual, ReferenceRotary(rounded, num_heads, positions, inv_freq, inverse), error))
              << head_dim << " x " << num_heads << " " << DTypeName(dtype);
        }
      }
    }
  }
}

TEST_P(RotaryTest, AnglesAreExactInEveryQuadrantAndAtAnySize) {
  // Turning (1, 0) shows cos and sin themselves.
  constexpr std::int64_t kRows = 4096;
  DMatrix x(kRows, 2);
  Indices positions(kRows);
  for (std::int64_t i = 0; i < kRows; ++i) {
    x.at(i, 0) = 1.0;
    positions[i] = static_cast<std::int32_t>(i - kRows / 2);
  }
  for (const float frequency : {0.01f, 0.3f, 1.5707963f, 1000.0f, 7e5f, 3e30f}) {
    const std::vector<float> inv_freq = {frequency};
    TestMatrix actual(x);
    QST_ASSERT_OK(Rotary(Context(), actual, 1, Reachable(positions).data(), Reachable(inv_freq).data(), false));
    const DMatrix result = actual.ToDouble();
    const DMatrix expected = ReferenceRotary(x, 1, positions, inv_freq, false);
    for (std::int64_t i = 0; i < kRows; ++i) {
      for (const std::int64_t j : {0, 1}) {
        // float32's rounding, and next to a zero of cos or sin that of the float64 angle.
        EXPECT_NEAR(result.at(i, j), expected.at(i, j), 6e-8 * std::abs(expected.at(i, j)) + 1e-13)
            << positions[i] << " * " << frequency;
      }
    }
  }
}

TEST_P(RotaryTest, PositionZeroIsTheIdentity) {
  const DMatrix x = random_.NormalMatrix(1, 16);
  const TestVector<std::int32_t> positions = {0};
  const TestVector<float> inv_freq = Reachable(InverseFrequencies(8, 100.0));
  TestMatrix actual(x);
  QST_ASSERT_OK(Rotary(Context(), actual, 2, positions.data(), inv_freq.data(), false));
  EXPECT_EQ(actual.Bits(), TestMatrix(x).Bits());
}

TEST_P(RotaryTest, InverseUndoes) {
  const DMatrix x = random_.NormalMatrix(50, 3 * 8);
  const TestVector<std::int32_t> positions = Reachable(random_.Indices(50, 4096));
  const TestVector<float> inv_freq = Reachable(InverseFrequencies(8, 10000.0));
  TestMatrix actual(x);
  QST_ASSERT_OK(Rotary(Context(), actual, 3, positions.data(), inv_freq.data(), false));
  QST_ASSERT_OK(Rotary(Context(), actual, 3, positions.data(), inv_freq.data(), true));
  EXPECT_TRUE(IsClose(actual, x, Tolerance(4)));
}

TEST_P(RotaryTest, ThreadsAndOtherRowsChangeNoBit) {
  const DMatrix x = random_.NormalMatrix(300, 2 * 10);
  const TestVector<std::int32_t> positions = Reachable(random_.Indices(300, 4096));
  const TestVector<float> inv_freq = Reachable(InverseFrequencies(10, 10000.0));
  TestMatrix first(x);
  QST_ASSERT_OK(Rotary(Context(1), first, 2, positions.data(), inv_freq.data(), false));
  for (const int threads : {2, 3}) {
    TestMatrix again(x);
    QST_ASSERT_OK(Rotary(Context(threads), again, 2, positions.data(), inv_freq.data(), false));
    EXPECT_EQ(again.Bits(), first.Bits());
  }
  TestMatrix alone(x);
  QST_ASSERT_OK(Rotary(Context(), Rows(alone.view(), 123, 124), 2, &positions[123], inv_freq.data(), false));
  EXPECT_EQ(alone.Bits(123, 124), first.Bits(123, 124));
}

TEST_P(RotaryTest, WhereXLiesChangesNoBit) {
  const TestVector<std::int32_t> positions = Reachable(random_.Indices(40, 4096));
  for (const std::int64_t head_dim : {16, 24, 64}) {
    const TestVector<float> inv_freq = Reachable(InverseFrequencies(head_dim, 10000.0));
    const DMatrix x = random_.NormalMatrix(40, 3 * head_dim);
    for (const DType dtype : OperandTypes()) {
      TestMatrix expected(x, dtype);
      QST_ASSERT_OK(Rotary(Context(), expected, 3, positions.data(), inv_freq.data(), false));
      for (const std::int64_t padding : {0, 8, 3}) {
        TestMatrix actual(x, dtype, padding, TestStart::kAligned);
        QST_ASSERT_OK(Rotary(Context(), actual, 3, positions.data(), inv_freq.data(), false));
        EXPECT_TRUE(actual.GuardsIntact());
        EXPECT_EQ(actual.Bits(), expected.Bits()) << head_dim << " " << DTypeName(dtype) << " padding " << padding;
      }
    }
  }
}

TEST_P(RotaryTest, RefusesWidthsThatDoNotSplit) {
  TestMatrix x(random_.NormalMatrix(2, 12));
  const TestVector<std::int32_t> positions = {0, 1};
  const TestVector<float> inv_freq = {1.0f, 1.0f, 1.0f};
  EXPECT_THAT(Rotary(Context(), x, 4, positions.data(), inv_freq.data(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("12 columns do not split into 4 heads")));
  EXPECT_THAT(Rotary(Context(), x, 0, positions.data(), inv_freq.data(), false),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Rotary(Context(), x, 2, nullptr, inv_freq.data(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("positions is null")));
  EXPECT_THAT(Rotary(Context(), x, 2, positions.data(), nullptr, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("inv_freq is null")));
  QST_EXPECT_OK(Rotary(Context(), TestMatrix(0, 12), 2, nullptr, inv_freq.data(), false));
}

QST_INSTANTIATE_OP_TEST(RotaryTest);

}  // namespace
}  // namespace qst
