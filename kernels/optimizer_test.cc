#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
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

class OptimizerTest : public OpTest {
 protected:
  AdamWParams Params() const {
    AdamWParams params;
    params.learning_rate = 1e-2f;
    params.weight_decay = 0.1f;
    params.grad_scale = 0.5f;
    return params;
  }

  Random random_{51};
};

TEST_P(OptimizerTest, AdamWFollowsTheReferenceOverSteps) {
  for (const std::int64_t n : {0, 1, 7, 8, 1001}) {
    DMatrix expected = random_.NormalMatrix(1, n);
    DMatrix expected_avg(1, n);
    DMatrix expected_sq(1, n);
    TestMatrix param(expected);
    TestMatrix avg(expected_avg);
    TestMatrix sq(expected_sq);
    AdamWParams params = Params();
    for (params.step = 1; params.step <= 5; ++params.step) {
      const DMatrix grad = random_.NormalMatrix(1, n);
      ReferenceAdamW(params, grad, &expected, &expected_avg, &expected_sq);
      TestMatrix grad_in(grad);
      QST_ASSERT_OK(AdamW(Context(), params, n, param.data(), grad_in.data(), avg.data(), sq.data()));
      // 1 - beta2 in float32 carries beta2's rounding a thousandfold in both; the rest is a few roundings a step.
      EXPECT_TRUE(IsClose(param, expected, Tolerance(16)));
      EXPECT_TRUE(IsClose(avg, expected_avg, Tolerance(16)));
      EXPECT_TRUE(IsClose(sq, expected_sq, Tolerance(16)));
    }
  }
}

TEST_P(OptimizerTest, FirstStepMovesByTheLearningRate) {
  AdamWParams params;
  params.learning_rate = 0.25f;
  TestMatrix param(DMatrix(1, 3));
  DMatrix grad(1, 3);
  grad.values = {5.0, -1e-3, 0.0};
  TestMatrix grad_in(grad);
  TestMatrix avg(DMatrix(1, 3));
  TestMatrix sq(DMatrix(1, 3));
  QST_ASSERT_OK(AdamW(Context(), params, 3, param.data(), grad_in.data(), avg.data(), sq.data()));
  const DMatrix moved = param.ToDouble();
  EXPECT_NEAR(moved.at(0, 0), -0.25, 1e-5);
  EXPECT_NEAR(moved.at(0, 1), 0.25, 1e-5);
  EXPECT_EQ(moved.at(0, 2), 0.0);
}

TEST_P(OptimizerTest, ThreadsChangeNoBit) {
  constexpr std::int64_t kCount = 50003;
  const DMatrix start = random_.NormalMatrix(1, kCount);
  TestMatrix grad(random_.NormalMatrix(1, kCount));
  std::string first;
  double first_sum = 0.0;
  for (const int threads : {1, 2, 3}) {
    TestMatrix param(start);
    TestMatrix avg(DMatrix(1, kCount));
    TestMatrix sq(DMatrix(1, kCount));
    QST_ASSERT_OK(AdamW(Context(threads), Params(), kCount, param.data(), grad.data(), avg.data(), sq.data()));
    TestVector<double> sum(1);
    QST_ASSERT_OK(SumOfSquares(Context(threads), grad.data(), kCount, sum.data()));
    if (threads == 1) {
      first = param.Bits();
      first_sum = Synced(sum)[0];
    }
    EXPECT_EQ(param.Bits(), first);
    EXPECT_EQ(Synced(sum)[0], first_sum);
  }
}

TEST_P(OptimizerTest, EveryElementOfALargeBufferMovesOnce) {
  // More elements than a GPU has threads for at once.
  constexpr std::int64_t kCount = 1300001;
  const auto fill = [](std::int64_t n, double value) {
    DMatrix m(1, n);
    std::fill(m.values.begin(), m.values.end(), value);
    return TestMatrix(m);
  };
  TestMatrix param = fill(kCount, 1.5), grad = fill(kCount, 0.25), avg = fill(kCount, 0.125), sq = fill(kCount, 0.5);
  TestMatrix one_param = fill(1, 1.5), one_grad = fill(1, 0.25), one_avg = fill(1, 0.125), one_sq = fill(1, 0.5);
  QST_ASSERT_OK(AdamW(Context(), Params(), kCount, param.data(), grad.data(), avg.data(), sq.data()));
  QST_ASSERT_OK(AdamW(Context(), Params(), 1, one_param.data(), one_grad.data(), one_avg.data(), one_sq.data()));
  const auto all_are = [&](const TestMatrix& many, const TestMatrix& one) {
    const double expected = one.ToDouble().at(0, 0);
    const std::vector<double> values = many.ToDouble().values;
    return std::all_of(values.begin(), values.end(), [expected](double value) { return value == expected; });
  };
  EXPECT_TRUE(all_are(param, one_param));
  EXPECT_TRUE(all_are(avg, one_avg));
  EXPECT_TRUE(all_are(sq, one_sq));
}

TEST_P(OptimizerTest, AnElementsPlaceChangesNoBit) {
  const DMatrix start = random_.NormalMatrix(1, 40);
  TestMatrix grad(random_.NormalMatrix(1, 40));
  TestMatrix whole(start), whole_avg(DMatrix(1, 40)), whole_sq(DMatrix(1, 40));
  TestMatrix parts(start), parts_avg(DMatrix(1, 40)), parts_sq(DMatrix(1, 40));
  QST_ASSERT_OK(AdamW(Context(), Params(), 40, whole.data(), grad.data(), whole_avg.data(), whole_sq.data()));
  for (std::int64_t i = 0; i < 40; ++i) {
    QST_ASSERT_OK(
        AdamW(Context(), Params(), 1, parts.data() + i, grad.data() + i, parts_avg.data() + i, parts_sq.data() + i));
  }
  EXPECT_EQ(parts.Bits(), whole.Bits());
}

TEST_P(OptimizerTest, WhereBuffersLieChangesNoBit) {
  constexpr std::int64_t kCount = 9002;
  const DMatrix start = random_.NormalMatrix(1, kCount);
  const DMatrix grad = random_.NormalMatrix(1, kCount);
  std::string bits[2];
  double sums[2];
  for (const TestStart place : {TestStart::kMisaligned, TestStart::kAligned}) {
    const auto buffer = [&](const DMatrix& values) { return TestMatrix(values, DType::kF32, 0, place); };
    TestMatrix param = buffer(start), grad_in = buffer(grad), avg = buffer(DMatrix(1, kCount)), sq = avg;
    TestVector<double> sum(1);
    QST_ASSERT_OK(AdamW(Context(), Params(), kCount, param.data(), grad_in.data(), avg.data(), sq.data()));
    QST_ASSERT_OK(SumOfSquares(Context(), grad_in.data(), kCount, sum.data()));
    const int i = place == TestStart::kAligned ? 1 : 0;
    bits[i] = param.Bits() + avg.Bits() + sq.Bits();
    sums[i] = Synced(sum)[0];
    for (const TestMatrix* m : {&param, &grad_in, &avg, &sq}) EXPECT_TRUE(m->GuardsIntact());
  }
  EXPECT_EQ(bits[1], bits[0]);
  EXPECT_EQ(sums[1], sums[0]);
}

// The gradient's norm is 5 in each.
TEST_P(OptimizerTest, GradientsAboveTheNormAreScaledDownToIt) {
  struct Case {
    double clip_norm;
    float grad_scale;
    float same_as;  // grad_scale of a step without clipping that does the same
  };
  for (const Case& c : {Case{2.0, 1.0f, 0.4f}, Case{2.0, 0.5f, 0.2f}, Case{5.0, 0.5f, 0.5f}, Case{7.0, 1.0f, 1.0f},
                        Case{0.0, 0.5f, 0.5f}, Case{0.3, 1.0f, static_cast<float>(0.3 / 5.0)}}) {
    DMatrix grad(1, 10);
    grad.at(0, 1) = 3.0;
    grad.at(0, 8) = -4.0;
    TestMatrix grad_in(grad);
    TestVector<double> sum(1);
    QST_ASSERT_OK(SumOfSquares(Context(), grad_in.data(), 10, sum.data()));
    const DMatrix start = random_.NormalMatrix(1, 10);
    AdamWParams params = Params();
    params.grad_scale = c.same_as;
    TestMatrix expected(start), expected_avg(DMatrix(1, 10)), expected_sq(DMatrix(1, 10));
    QST_ASSERT_OK(
        AdamW(Context(), params, 10, expected.data(), grad_in.data(), expected_avg.data(), expected_sq.data()));
    params.grad_scale = c.grad_scale;
    params.clip_norm = c.clip_norm;
    params.sum_of_squares = sum.data();
    TestMatrix actual(start), actual_avg(DMatrix(1, 10)), actual_sq(DMatrix(1, 10));
    QST_ASSERT_OK(AdamW(Context(), params, 10, actual.data(), grad_in.data(), actual_avg.data(), actual_sq.data()));
    EXPECT_EQ(actual.Bits(), expected.Bits()) << c.clip_norm << " " << c.grad_scale;
    EXPECT_EQ(actual_avg.Bits(), expected_avg.Bits());
    EXPECT_EQ(actual_sq.Bits(), expected_sq.Bits());
  }
}

TEST_P(OptimizerTest, ANormOfZeroScalesNothing) {
  TestMatrix grad(DMatrix(1, 3)), avg(DMatrix(1, 3)), sq(DMatrix(1, 3));
  const DMatrix start = random_.NormalMatrix(1, 3);
  TestMatrix param(start);
  const TestVector<double> sum = {0.0};
  AdamWParams params = Params();
  params.weight_decay = 0.0f;
  params.clip_norm = 1.0;
  params.sum_of_squares = sum.data();
  QST_ASSERT_OK(AdamW(Context(), params, 3, param.data(), grad.data(), avg.data(), sq.data()));
  EXPECT_EQ(param.Bits(), TestMatrix(start).Bits());
}

TEST_P(OptimizerTest, ANormThatIsNotFiniteChangesNothing) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const double bad : {inf, std::nan("")}) {
    for (const double clip_norm : {0.0, 1.0}) {
      DMatrix grad = random_.NormalMatrix(1, 600);
      grad.at(0, 555) = bad;
      TestMatrix grad_in(grad);
      TestVector<double> sum(1);
      QST_ASSERT_OK(SumOfSquares(Context(), grad_in.data(), 600, sum.data()));
      EXPECT_FALSE(std::isfinite(Synced(sum)[0]));
      const DMatrix start = random_.NormalMatrix(1, 600);
      TestMatrix param(start), avg(start), sq(start);
      AdamWParams params = Params();
      params.clip_norm = clip_norm;
      params.sum_of_squares = sum.data();
      QST_ASSERT_OK(AdamW(Context(), params, 600, param.data(), grad_in.data(), avg.data(), sq.data()));
      for (const TestMatrix* m : {&param, &avg, &sq}) EXPECT_EQ(m->Bits(), TestMatrix(start).Bits());
    }
  }
}

TEST_P(OptimizerTest, SumOfSquaresIsWide) {
  for (const std::int64_t n : {0, 1, 5, 8, 8191, 8192, 8193, 40000, 2200000}) {
    const DMatrix x = random_.NormalMatrix(1, n);
    TestMatrix in(x);
    TestVector<double> sum = {-1.0};
    QST_ASSERT_OK(SumOfSquares(Context(), in.data(), n, sum.data()));
    EXPECT_NEAR(Synced(sum)[0], ReferenceSumOfSquares(x), 1e-12 * static_cast<double>(n));
  }
  // Squares that float32 could not hold.
  TestMatrix large(DMatrix(1, 2));
  large.data()[0] = 1e30f;
  TestVector<double> sum(1);
  QST_ASSERT_OK(SumOfSquares(Context(), large.data(), 2, sum.data()));
  EXPECT_NEAR(Synced(sum)[0], 1e60, 1e54);
}

TEST_P(OptimizerTest, RefusesWhatCannotBe) {
  TestMatrix x(DMatrix(1, 4));
  AdamWParams params = Params();
  params.step = 0;
  EXPECT_THAT(AdamW(Context(), params, 4, x.data(), x.data(), x.data(), x.data()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("step is 0")));
  params = Params();
  params.beta2 = 1.0f;
  EXPECT_THAT(AdamW(Context(), params, 4, x.data(), x.data(), x.data(), x.data()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("beta2 is 1")));
  for (const double clip_norm : {-1.0, std::nan("")}) {
    params = Params();
    params.clip_norm = clip_norm;
    EXPECT_THAT(AdamW(Context(), params, 4, x.data(), x.data(), x.data(), x.data()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("clip_norm is")));
  }
  EXPECT_THAT(AdamW(Context(), Params(), -1, x.data(), x.data(), x.data(), x.data()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(AdamW(Context(), Params(), 4, x.data(), nullptr, x.data(), x.data()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("grad is null")));
  TestVector<double> sum(1);
  EXPECT_THAT(SumOfSquares(Context(), nullptr, 4, sum.data()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SumOfSquares(Context(), x.data(), 4, nullptr), StatusIs(absl::StatusCode::kInvalidArgument));
}

QST_INSTANTIATE_OP_TEST(OptimizerTest);

}  // namespace
}  // namespace qst
