#include <cmath>
#include <limits>
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

class LossTest : public OpTest {
 protected:
  Random random_{41};
};

TEST_P(LossTest, MatchesReference) {
  for (const std::int64_t vocabulary : {1, 2, 7, 8, 33, 1000, 2500, 49152, 262144}) {
    const std::int64_t rows = vocabulary > 10000 ? 3 : 9;
    const DMatrix logits = random_.NormalMatrix(rows, vocabulary, 4.0);
    const Indices targets = random_.Indices(rows, vocabulary);
    const LossResult expected = ReferenceCrossEntropy(logits, targets, 0.125);
    for (const std::int64_t padding : {0, 3}) {
      TestMatrix actual(logits, DType::kF32, padding);
      TestMatrix losses(1, rows);
      TestVector<std::int32_t> argmax(rows);
      QST_ASSERT_OK(
          CrossEntropy(Context(), actual, Reachable(targets).data(), 0.125f, true, losses.data(), argmax.data()));
      // Logits of up to 20 round the exponent by their own half unit.
      EXPECT_TRUE(IsClose(losses, expected.losses, Tolerance(4), 1.0)) << vocabulary;
      EXPECT_TRUE(IsClose(actual, expected.grad, 4.0 * Tolerance(4))) << vocabulary;
      EXPECT_EQ(Synced(argmax), Reachable(expected.argmax));
    }
  }
}

TEST_P(LossTest, WithoutGradientLogitsStay) {
  const DMatrix logits = random_.NormalMatrix(4, 37);
  const TestVector<std::int32_t> targets = Reachable(random_.Indices(4, 37));
  TestMatrix with(logits);
  TestMatrix without(logits);
  TestMatrix losses_with(1, 4);
  TestMatrix losses_without(1, 4);
  QST_ASSERT_OK(CrossEntropy(Context(), with, targets.data(), 1.0f, true, losses_with.data(), nullptr));
  QST_ASSERT_OK(CrossEntropy(Context(), without, targets.data(), 1.0f, false, losses_without.data(), nullptr));
  EXPECT_EQ(losses_with.Bits(), losses_without.Bits());
  EXPECT_EQ(without.Bits(), TestMatrix(logits).Bits());
}

TEST_P(LossTest, ArgmaxIsTheFirstOfEqualLogits) {
  for (const std::int64_t vocabulary : {5, 16, 41, 5000}) {
    for (const double rest : {0.0, -std::numeric_limits<double>::infinity()}) {
      DMatrix logits(2, vocabulary);
      for (double& value : logits.values) value = rest;
      logits.at(0, 2) = 3.0;
      logits.at(0, 4) = 3.0;
      logits.at(0, vocabulary - 1) = 3.0;
      // Row 1: all are the largest.
      const TestVector<std::int32_t> targets = {2, 0};
      TestMatrix losses(1, 2);
      TestVector<std::int32_t> argmax(2);
      TestMatrix in_out(logits);
      QST_ASSERT_OK(CrossEntropy(Context(), in_out, targets.data(), 1.0f, true, losses.data(), argmax.data()));
      EXPECT_EQ(Synced(argmax), (TestVector<std::int32_t>{2, 0})) << vocabulary;
    }
  }
}

TEST_P(LossTest, ExtremeLogitsGiveTheLimit) {
  const double inf = std::numeric_limits<double>::infinity();
  DMatrix logits(3, 10);
  logits.at(0, 3) = 3e38;  // takes everything
  logits.at(1, 3) = -inf;  // excluded
  logits.at(2, 3) = std::nan("");
  const TestVector<std::int32_t> targets = {3, 0, 0};
  TestMatrix in_out(logits);
  TestMatrix losses_out(1, 3);
  QST_ASSERT_OK(CrossEntropy(Context(), in_out, targets.data(), 1.0f, true, losses_out.data(), nullptr));
  const DMatrix losses = losses_out.ToDouble();
  EXPECT_EQ(losses.at(0, 0), 0.0);
  EXPECT_NEAR(losses.at(0, 1), std::log(9.0), 1e-6);
  EXPECT_TRUE(std::isnan(losses.at(0, 2)));
  const DMatrix grad = in_out.ToDouble();
  EXPECT_EQ(grad.at(0, 3), 0.0);
  EXPECT_EQ(grad.at(0, 0), 0.0);
  EXPECT_EQ(grad.at(1, 3), 0.0);
  EXPECT_NEAR(grad.at(1, 1), 1.0 / 9.0, 1e-7);
  EXPECT_TRUE(std::isnan(grad.at(2, 9)));
}

TEST_P(LossTest, ThreadsAndOtherRowsChangeNoBit) {
  const DMatrix logits = random_.NormalMatrix(20, 3001, 3.0);
  const TestVector<std::int32_t> targets = Reachable(random_.Indices(20, 3001));
  TestMatrix first(logits);
  TestMatrix first_losses(1, 20);
  QST_ASSERT_OK(CrossEntropy(Context(1), first, targets.data(), 0.5f, true, first_losses.data(), nullptr));
  for (const int threads : {2, 3}) {
    TestMatrix again(logits);
    TestMatrix losses(1, 20);
    QST_ASSERT_OK(CrossEntropy(Context(threads), again, targets.data(), 0.5f, true, losses.data(), nullptr));
    EXPECT_EQ(again.Bits(), first.Bits());
    EXPECT_EQ(losses.Bits(), first_losses.Bits());
  }
  TestMatrix all(logits);
  TestMatrix loss(1, 1);
  QST_ASSERT_OK(CrossEntropy(Context(), Rows(all.view(), 7, 8), &targets[7], 0.5f, true, loss.data(), nullptr));
  EXPECT_EQ(all.Bits(7, 8), first.Bits(7, 8));
  EXPECT_EQ(loss.ToDouble().at(0, 0), first_losses.ToDouble().at(0, 7));
}

TEST_P(LossTest, WhereLogitsLieChangesNoBit) {
  for (const std::int64_t vocabulary : {4, 512, 6000}) {
    const DMatrix logits = random_.NormalMatrix(3, vocabulary, 3.0);
    const TestVector<std::int32_t> targets = Reachable(random_.Indices(3, vocabulary));
    TestMatrix expected(logits);
    TestMatrix expected_losses(1, 3);
    QST_ASSERT_OK(CrossEntropy(Context(), expected, targets.data(), 0.5f, true, expected_losses.data(), nullptr));
    for (const std::int64_t padding : {0, 4, 3}) {
      TestMatrix actual(logits, DType::kF32, padding, TestStart::kAligned);
      TestMatrix losses(1, 3);
      QST_ASSERT_OK(CrossEntropy(Context(), actual, targets.data(), 0.5f, true, losses.data(), nullptr));
      EXPECT_TRUE(actual.GuardsIntact());
      EXPECT_EQ(actual.Bits(), expected.Bits()) << vocabulary << " padding " << padding;
      EXPECT_EQ(losses.Bits(), expected_losses.Bits());
    }
  }
}

TEST_P(LossTest, RefusesTargetsOutsideTheVocabulary) {
  if (IsCuda()) GTEST_SKIP() << "a GPU's memory is not looked into: who uploads targets has checked them";
  TestMatrix logits(random_.NormalMatrix(2, 5));
  TestMatrix losses(1, 2);
  const Indices above = {0, 5};
  const Indices below = {-1, 0};
  EXPECT_THAT(CrossEntropy(Context(), logits, above.data(), 1.0f, true, losses.data(), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("targets[1] is 5, outside [0, 5)")));
  EXPECT_THAT(CrossEntropy(Context(), logits, below.data(), 1.0f, true, losses.data(), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("targets[0] is -1")));
}

TEST_P(LossTest, RefusesWhatIsMissingAndOtherTypes) {
  TestMatrix logits(random_.NormalMatrix(2, 5));
  TestMatrix losses(1, 2);
  EXPECT_THAT(CrossEntropy(Context(), logits, nullptr, 1.0f, true, losses.data(), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("targets is null")));
  const TestVector<std::int32_t> good = {0, 1};
  EXPECT_THAT(CrossEntropy(Context(), logits, good.data(), 1.0f, true, nullptr, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("losses is null")));
  TestMatrix narrow(random_.NormalMatrix(2, 5), DType::kBF16);
  EXPECT_THAT(CrossEntropy(Context(), narrow, good.data(), 1.0f, true, losses.data(), nullptr),
              StatusIs(absl::StatusCode::kUnimplemented));
  QST_EXPECT_OK(CrossEntropy(Context(), TestMatrix(0, 5), nullptr, 1.0f, true, nullptr, nullptr));
}

TEST_P(LossTest, SquaredErrorMatchesReference) {
  for (const std::int64_t rows : {1, 2, 127, 128, 129, 1000}) {
    const DMatrix x = random_.NormalMatrix(rows, 1, 4.0);
    const DMatrix targets = random_.NormalMatrix(1, rows, 4.0);
    const LossResult expected = ReferenceSquaredError(x, targets, 0.125);
    TestMatrix values(targets);
    for (const std::int64_t padding : {0, 3}) {
      TestMatrix actual(x, DType::kF32, padding);
      TestMatrix losses(1, rows);
      QST_ASSERT_OK(SquaredError(Context(), actual, values.data(), 0.125f, true, losses.data()));
      // A difference of values of up to 20 is rounded once, and squared.
      EXPECT_TRUE(IsClose(losses, expected.losses, Tolerance(2), 16.0)) << rows;
      EXPECT_TRUE(IsClose(actual, expected.grad, Tolerance(2), 4.0)) << rows;
      EXPECT_TRUE(actual.GuardsIntact());
      TestMatrix kept(x, DType::kF32, padding);
      TestMatrix losses_again(1, rows);
      QST_ASSERT_OK(SquaredError(Context(3), kept, values.data(), 0.125f, false, losses_again.data()));
      EXPECT_EQ(kept.Bits(), TestMatrix(x, DType::kF32, padding).Bits()) << "without gradient predictions stay";
      EXPECT_EQ(losses_again.Bits(), losses.Bits());
    }
  }
}

TEST_P(LossTest, SquaredErrorRefusesOtherShapesAndTypes) {
  TestMatrix losses(1, 2);
  TestMatrix targets(random_.NormalMatrix(1, 2));
  TestMatrix wide(random_.NormalMatrix(2, 3));
  EXPECT_THAT(SquaredError(Context(), wide, targets.data(), 1.0f, true, losses.data()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[2, 3], need one column")));
  TestMatrix narrow(random_.NormalMatrix(2, 1), DType::kBF16);
  EXPECT_THAT(SquaredError(Context(), narrow, targets.data(), 1.0f, true, losses.data()),
              StatusIs(absl::StatusCode::kUnimplemented));
  TestMatrix good(random_.NormalMatrix(2, 1));
  EXPECT_THAT(SquaredError(Context(), good, nullptr, 1.0f, true, losses.data()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("targets is null")));
  QST_EXPECT_OK(SquaredError(Context(), TestMatrix(0, 1), nullptr, 1.0f, true, nullptr));
}

QST_INSTANTIATE_OP_TEST(LossTest);

}  // namespace
}  // namespace qst
