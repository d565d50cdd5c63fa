#include "worker/train/eval_metrics.h"

#include <cmath>

#include "gtest/gtest.h"

namespace qst {
namespace {

TEST(EvalMetricsTest, BinaryScoresFollowTheirDefinitions) {
  // 3 right and 1 wrong "yes", 4 right and 2 wrong "no".
  const std::vector<std::int32_t> predicted = {1, 1, 1, 1, 0, 0, 0, 0, 0, 0};
  const std::vector<std::int32_t> expected = {1, 1, 1, 0, 0, 0, 0, 0, 1, 1};
  const BinaryScores scores = ScoreBinary(predicted, expected);
  EXPECT_DOUBLE_EQ(scores.f1, 2 * 0.75 * 0.6 / (0.75 + 0.6));
  EXPECT_DOUBLE_EQ(scores.matthews, (3.0 * 4 - 1 * 2) / std::sqrt(4.0 * 5 * 5 * 6));
  EXPECT_EQ(ScoreBinary(expected, expected).f1, 1.0);
  EXPECT_EQ(ScoreBinary(expected, expected).matthews, 1.0);
}

TEST(EvalMetricsTest, BinaryScoresOfOneClassAreZero) {
  for (const auto& [predicted, expected] :
       {std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>>{{0, 0}, {0, 1}}, {{0, 0}, {0, 0}}, {{}, {}}}) {
    EXPECT_EQ(ScoreBinary(predicted, expected).f1, 0.0);
    EXPECT_EQ(ScoreBinary(predicted, expected).matthews, 0.0);
  }
}

TEST(EvalMetricsTest, CorrelationsOfValuesAndOfRanks) {
  EXPECT_NEAR(PearsonCorrelation({1, 2, 3, 4}, {10, 20, 30, 40}), 1.0, 1e-15);
  EXPECT_NEAR(PearsonCorrelation({1, 2, 3}, {3, 2, 1}), -1.0, 1e-15);
  // By hand: deviations (-2, -1, 0, 1, 2) and (-3, 1, -2, 2, 2).
  EXPECT_NEAR(PearsonCorrelation({1, 2, 3, 4, 5}, {1, 5, 2, 6, 6}), 11.0 / std::sqrt(10.0 * 22.0), 1e-12);
  // Ranks of the second: 0, 2, 1, 3.5, 3.5.
  EXPECT_NEAR(SpearmanCorrelation({1, 2, 3, 4, 5}, {1, 5, 2, 6, 6}), 8.5 / std::sqrt(10.0 * 9.5), 1e-12);
  EXPECT_NEAR(SpearmanCorrelation({1, 2, 3}, {1, 100, 1000000}), 1.0, 1e-15) << "only the order counts";
  EXPECT_TRUE(std::isnan(PearsonCorrelation({1, 1}, {1, 2})));
  EXPECT_TRUE(std::isnan(SpearmanCorrelation({1, 2}, {3, 3})));
  EXPECT_TRUE(std::isnan(PearsonCorrelation({}, {})));
}

}  // namespace
}  // namespace qst
