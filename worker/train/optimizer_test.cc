#include "worker/train/optimizer.h"

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "proto/support/status_matchers.h"
#include "worker/side/testing/golden.h"
#include "worker/train/schedule.h"

namespace qst {
namespace {

class GoldenTrainingTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTrainingTest, FiveStepsGivePyTorchsLosses) {
  const GoldenCase golden(GetParam());
  ThreadPool threads(2);
  OpContext ctx;
  ctx.threads = &threads;
  ctx.isa = *ResolveIsa(CpuIsa::kAuto);
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 1);
  QST_ASSERT_OK(network);
  golden.LoadParameters(&(*network)->parameters());
  TrainSettings settings;
  settings.adam_beta1 = golden.train()["beta1"];
  settings.adam_beta2 = golden.train()["beta2"];
  settings.adam_epsilon = golden.train()["epsilon"];
  settings.weight_decay = golden.train()["weight_decay"];
  settings.clip_norm = golden.train()["clip_norm"];
  const std::vector<double> losses = golden.expected()["train_losses"];
  const std::vector<double> norms = golden.expected()["train_grad_norms"];
  const double scale = golden.config().gate_lr_scale;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    (*network)->parameters().ZeroGradients();
    Predictions predictions;
    const auto num = static_cast<float>(golden.batch().rows.size());
    QST_ASSERT_OK((*network)->AccumulateGradients(ctx, golden.batch(), golden.HiddenStates(DType::kBF16), 1.0f / num,
                                                  &predictions));
    const double loss = std::accumulate(predictions.losses.begin(), predictions.losses.end(), 0.0) / num;
    // Adam divides gradients by their own size, so tiny ones carry their rounding into the parameters.
    EXPECT_NEAR(losses[i], loss, 2e-5 * losses[i]) << "step " << i + 1;
    const auto norm = OptimizerStep(ctx, settings, scale, golden.train()["learning_rate"],
                                    static_cast<std::int64_t>(i) + 1, &(*network)->parameters());
    QST_ASSERT_OK(norm);
    EXPECT_NEAR(norms[i], *norm, 2e-4 * norms[i]) << "step " << i + 1;
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, GoldenTrainingTest, testing::ValuesIn(GoldenCase::Names()),
                         [](const auto& info) { return info.param; });

TEST(OptimizerTest, ANonFiniteGradientChangesNothing) {
  const GoldenCase golden("paper_causal_lm");
  ThreadPool threads(1);
  OpContext ctx;
  ctx.threads = &threads;
  ctx.isa = *ResolveIsa(CpuIsa::kAuto);
  Parameters parameters(ParameterLayout(golden.config()));
  parameters.Initialise(3);
  const std::vector<float> before(parameters.values(), parameters.values() + parameters.size());
  parameters.gradients()[5] = INFINITY;
  const auto norm = OptimizerStep(ctx, TrainSettings(), 1.0, 0.1, 1, &parameters);
  QST_ASSERT_OK(norm);
  EXPECT_FALSE(std::isfinite(*norm));
  EXPECT_EQ(before, std::vector<float>(parameters.values(), parameters.values() + parameters.size()));
  EXPECT_EQ(parameters.exp_avg()[5], 0.0f);
}

TEST(LearningRateTest, RisesToThePeakAndStaysOrFalls) {
  TrainSettings settings;
  settings.learning_rate = 1.0;
  settings.warmup_ratio = 0.19;  // rounds up to 2 of 10
  settings.schedule = v1::SCHEDULE_CONSTANT;
  const LearningRate constant(settings, 10);
  EXPECT_DOUBLE_EQ(constant.At(1), 0.5);
  EXPECT_DOUBLE_EQ(constant.At(2), 1.0);
  EXPECT_DOUBLE_EQ(constant.At(3), 1.0);
  EXPECT_DOUBLE_EQ(constant.At(10), 1.0);
  settings.schedule = v1::SCHEDULE_LINEAR;
  const LearningRate linear(settings, 10);
  EXPECT_DOUBLE_EQ(linear.At(2), 1.0);
  EXPECT_DOUBLE_EQ(linear.At(3), 8.0 / 9.0);
  EXPECT_DOUBLE_EQ(linear.At(10), 1.0 / 9.0);
  settings.warmup_ratio = 0.0;
  EXPECT_DOUBLE_EQ(LearningRate(settings, 10).At(1), 1.0);
}

}  // namespace
}  // namespace qst
