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
  EXPECT_NEAR(param.data()[0], -0.25f, 1e-5);
  EXPECT_NEAR(param.data()[1], 0.25f, 1e-5);
  EXPECT_EQ(param.data()[2], 0.0f);
}

TEST_P(OptimizerTest, ThreadsChangeNoBit) {
  constexpr std::int64_t kCount = 50003;
  const DMatrix start = random_.NormalMatrix(1, kCount);
  TestMatrix grad(random_.NormalMatrix(1, kCount));
  TestMatrix first(start);
  double first_sum = 0.0;
  for (const int threads : {1, 2, 3}) {
    TestMatrix param(start);
    TestMatrix avg(DMatrix(1, kCount));
    TestMatrix sq(DMatrix(1, kCount));
    QST_ASSERT_OK(AdamW(Context(threads), Params(), kCount, param.data(), grad.data(), avg.data(), sq.data()));
    double sum = 0.0;
    QST_ASSERT_OK(SumOfSquares(Context(threads), grad.data(), kCount, &sum));
    if (threads == 1) {
      first = param;
      first_sum = sum;
    }
    EXPECT_EQ(param.Bits(), first.Bits());
    EXPECT_EQ(sum, first_sum);
  }
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

TEST_P(OptimizerTest, SumOfSquaresIsWide) {
  for (const std::int64_t n : {0, 1, 5, 8, 8191, 8192, 8193, 40000}) {
    const DMatrix x = random_.NormalMatrix(1, n);
    TestMatrix in(x);
    double sum = -1.0;
    QST_ASSERT_OK(SumOfSquares(Context(), in.data(), n, &sum));
    EXPECT_NEAR(sum, ReferenceSumOfSquares(x), 1e-12 * static_cast<double>(n));
  }
  // Squares that float32 could not hold.
  TestMatrix large(DMatrix(1, 2));
  large.data()[0] = 1e30f;
  double sum = 0.0;
  QST_ASSERT_OK(SumOfSquares(Context(), large.data(), 2, &sum));
  EXPECT_NEAR(sum, 1e60, 1e54);
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
  EXPECT_THAT(AdamW(Context(), Params(), -1, x.data(), x.data(), x.data(), x.data()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(AdamW(Context(), Params(), 4, x.data(), nullptr, x.data(), x.data()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("grad is null")));
  double sum = 0.0;
  EXPECT_THAT(SumOfSquares(Context(), nullptr, 4, &sum), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SumOfSquares(Context(), x.data(), 4, nullptr), StatusIs(absl::StatusCode::kInvalidArgument));
}

QST_INSTANTIATE_CPU_OP_TEST(OptimizerTest);

}  // namespace
}  // namespace qst
