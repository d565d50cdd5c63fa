#include "worker/side/side_generator.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "proto/support/status_matchers.h"
#include "worker/side/testing/golden.h"

namespace qst {
namespace {

double LossOf(const std::vector<float>& logits, int target) {
  double top = -INFINITY;
  for (const float value : logits) top = std::max<double>(top, value);
  double sum = 0.0;
  for (const float value : logits) sum += std::exp(value - top);
  return std::log(sum) + top - logits[target];
}

class SideGeneratorTest : public testing::TestWithParam<std::string> {
 protected:
  SideGeneratorTest() : threads_(2), golden_(GetParam()) {
    ctx_.threads = &threads_;
    ctx_.isa = *ResolveIsa(CpuIsa::kAuto);
    auto network = SideNetwork::Create(golden_.config(), golden_.frozen(), 1);
    QST_EXPECT_OK(network);
    network_ = *std::move(network);
    golden_.LoadParameters(&network_->parameters());
  }
  // Hidden states of tokens [begin, end) of the first sequence, which has 5.
  HiddenStateSource Tokens(std::int64_t begin, std::int64_t end) const {
    const HiddenStateSource all = golden_.HiddenStates(DType::kBF16);
    return [=](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> { return Rows(*all(layer), begin, end); };
  }

  ThreadPool threads_;
  OpContext ctx_;
  GoldenCase golden_;
  std::unique_ptr<SideNetwork> network_;
};

TEST_P(SideGeneratorTest, LogitsAreThoseOfTheWholeSequenceHoweverItIsCut) {
  SideBatch batch;
  batch.offsets = {0, 5};
  batch.rows = {0, 1, 2, 3, 4};
  batch.targets = {3, 1, 4, 1, 5};
  Predictions expected;
  QST_ASSERT_OK(network_->Evaluate(ctx_, batch, Tokens(0, 5), &expected));

  auto generator = SideGenerator::Create(network_.get(), 5);
  QST_ASSERT_OK(generator);
  EXPECT_EQ((*generator)->first_layer(), 0);
  std::vector<std::vector<float>> one_by_one;
  for (int t = 0; t < 5; ++t) {
    std::vector<float> logits;
    QST_ASSERT_OK((*generator)->Append(ctx_, 1, Tokens(t, t + 1), &logits));
    EXPECT_NEAR(LossOf(logits, batch.targets[t]), expected.losses[t], 1e-5) << t;
    one_by_one.push_back(logits);
  }
  EXPECT_EQ((*generator)->num_tokens(), 5);
  (*generator)->Reset();
  std::vector<float> logits;
  QST_ASSERT_OK((*generator)->Append(ctx_, 3, Tokens(0, 3), &logits));
  EXPECT_EQ(logits, one_by_one[2]);
  QST_ASSERT_OK((*generator)->Append(ctx_, 2, Tokens(3, 5), &logits));
  EXPECT_EQ(logits, one_by_one[4]);
}

TEST_P(SideGeneratorTest, RefusesMoreTokensThanThereIsRoomFor) {
  auto generator = SideGenerator::Create(network_.get(), 2);
  QST_ASSERT_OK(generator);
  std::vector<float> logits;
  EXPECT_THAT((*generator)->Append(ctx_, 3, Tokens(0, 3), &logits), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT((*generator)->Append(ctx_, 0, Tokens(0, 0), &logits), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*generator)->Append(ctx_, 1, Tokens(0, 2), &logits), StatusIs(absl::StatusCode::kInvalidArgument));
  QST_EXPECT_OK((*generator)->Append(ctx_, 2, Tokens(0, 2), &logits));
}

INSTANTIATE_TEST_SUITE_P(Cases, SideGeneratorTest,
                         testing::Values("paper_causal_lm", "linear_causal_lm", "avgpool_causal_lm"),
                         [](const auto& info) { return info.param; });

TEST(UntouchedGeneratorTest, EqualsAFreshSideNetworkToTheLastBit) {
  const GoldenCase golden("untouched_causal_lm");
  ThreadPool threads(2);
  OpContext ctx;
  ctx.threads = &threads;
  ctx.isa = *ResolveIsa(CpuIsa::kAuto);
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 1);
  QST_ASSERT_OK(network);
  auto fresh = SideGenerator::Create(network->get(), 10);
  auto untouched = SideGenerator::CreateUntouched(golden.config().backbone, golden.frozen(), 10);
  QST_ASSERT_OK(fresh);
  QST_ASSERT_OK(untouched);
  EXPECT_EQ((*untouched)->first_layer(), 2);
  std::vector<float> expected;
  std::vector<float> actual;
  QST_ASSERT_OK((*untouched)->Append(ctx, 10, golden.HiddenStates(DType::kBF16), &expected));
  QST_ASSERT_OK((*fresh)->Append(ctx, 10, golden.HiddenStates(DType::kBF16), &actual));
  EXPECT_EQ(expected, actual);
}

TEST(UntouchedGeneratorTest, RefusesClassifiers) {
  const GoldenCase golden("reference_classification");
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 1);
  QST_ASSERT_OK(network);
  EXPECT_THAT(SideGenerator::Create(network->get(), 10), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace qst
