#include "worker/train/optimizer.h"

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "proto/support/status_matchers.h"
#include "worker/side/testing/golden.h"
#include "worker/testing/test_device.h"
#include "worker/train/schedule.h"

namespace qst {
namespace {

struct GoldenParam {
  std::string name;
  DeviceType device;
};

class GoldenTrainingTest : public testing::TestWithParam<GoldenParam> {
 protected:
  void SetUp() override { QST_SKIP_WITHOUT_DEVICE(GetParam().device); }
};

TEST_P(GoldenTrainingTest, FiveStepsGivePyTorchsLosses) {
  const GoldenCase golden(GetParam().name);
  ThreadPool threads(2);
  const OpContext ctx = TestDeviceContext(GetParam().device, &threads);
  auto network = SideNetwork::Create(ctx, golden.config(), golden.frozen(), 1);
  QST_ASSERT_OK(network);
  golden.LoadParameters(&(*network)->parameters());
  TrainSettings settings;
  settings.adam_beta1 = golden.train()["beta1"];
  settings.adam_beta2 = golden.train()["beta2"];
  settings.adam_epsilon = golden.train()["epsilon"];
  settings.weight_decay = golden.train()["weight_decay"];
  settings.clip_norm = golden.train()["clip_norm"];
  const auto optimizer =
      Optimizer::Create(ctx, settings, golden.config().gate_lr_scale, &(*network)->parameters());
  QST_ASSERT_OK(optimizer);
  const std::vector<double> losses = golden.expected()["train_losses"];
  const std::vector<double> norms = golden.expected()["train_grad_norms"];
  for (std::size_t i = 0; i < losses.size(); ++i) {
    QST_ASSERT_OK((*network)->parameters().ZeroGradients());
    const auto num = static_cast<float>(golden.batch().rows.size());
    QST_ASSERT_OK(
        (*network)->AccumulateGradients(golden.batch(), golden.HiddenStates(DType::kBF16), 1.0f / num));
    QST_ASSERT_OK((*optimizer)->Step(golden.train()["learning_rate"], static_cast<std::int64_t>(i) + 1));
    const auto predictions = (*network)->FetchPredictions();
    QST_ASSERT_OK(predictions);
    const double loss = std::accumulate(predictions->losses.begin(), predictions->losses.end(), 0.0) / num;
    // Adam divides gradients by their own size, so tiny ones carry their rounding into the parameters.
    EXPECT_NEAR(losses[i], loss, 2e-5 * losses[i]) << "step " << i + 1;
    const auto norm = (*optimizer)->FetchGradientNorm();
    QST_ASSERT_OK(norm);
    EXPECT_NEAR(norms[i], *norm, 2e-4 * norms[i]) << "step " << i + 1;
  }
}

std::vector<GoldenParam> AllCases() {
  std::vector<GoldenParam> out;
  for (const std::string& name : GoldenCase::Names()) {
    for (const DeviceType device : {DeviceType::kCpu, DeviceType::kCuda}) out.push_back({name, device});
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Cases, GoldenTrainingTest, testing::ValuesIn(AllCases()), [](const auto& info) {
  return info.param.name + "_" + TestDeviceName(info.param.device);
});

class OptimizerTest : public DeviceTest {
 protected:
  OptimizerTest() : golden_("paper_causal_lm") {
    auto parameters = Parameters::Create(ctx_, ParameterLayout(golden_.config()));
    QST_EXPECT_OK(parameters);
    parameters_ = *std::move(parameters);
    QST_EXPECT_OK(parameters_->Initialise(3));
  }
  std::vector<float> Buffer(ParameterBuffer buffer) const {
    const auto out = parameters_->Download(buffer);
    QST_EXPECT_OK(out);
    return *out;
  }
  // Every gradient.
  void SetGradients(float value) {
    for (const ParameterInfo& info : parameters_->layout()) {
      const std::vector<float> gradient(static_cast<std::size_t>(info.num_elems()), value);
      QST_ASSERT_OK(parameters_->Upload(ParameterBuffer::kGradients, info, gradient.data()));
    }
  }

  GoldenCase golden_;
  std::unique_ptr<Parameters> parameters_;
};

TEST_P(OptimizerTest, ANonFiniteGradientChangesNothing) {
  SetGradients(0.5f);
  const ParameterInfo& info = parameters_->layout()[1];
  std::vector<float> bad(static_cast<std::size_t>(info.num_elems()), 1.0f);
  bad.back() = INFINITY;
  QST_ASSERT_OK(parameters_->Upload(ParameterBuffer::kGradients, info, bad.data()));
  const std::vector<float> before = Buffer(ParameterBuffer::kValues);
  const auto optimizer = Optimizer::Create(ctx_, TrainSettings(), 1.0, parameters_.get());
  QST_ASSERT_OK(optimizer);
  QST_ASSERT_OK((*optimizer)->Step(0.1, 1));
  const auto norm = (*optimizer)->FetchGradientNorm();
  QST_ASSERT_OK(norm);
  EXPECT_FALSE(std::isfinite(*norm));
  EXPECT_EQ(Buffer(ParameterBuffer::kValues), before);
  EXPECT_EQ(Buffer(ParameterBuffer::kExpAvg), std::vector<float>(before.size()));
  EXPECT_EQ(Buffer(ParameterBuffer::kExpAvgSq), std::vector<float>(before.size()));
}

// Adam forgets the size of gradients, but its first moment keeps it.
TEST_P(OptimizerTest, ClippingScalesAllGroupsToTheLimitAndAtItDoesNothing) {
  const double norm = 0.5 * std::sqrt(static_cast<double>(parameters_->num_trainable()));
  for (const double clip : {0.25 * norm, norm * (1 + 1e-9), 0.0}) {
    QST_ASSERT_OK(parameters_->Initialise(3));
    SetGradients(0.5f);
    TrainSettings settings;
    settings.clip_norm = clip;
    const auto optimizer = Optimizer::Create(ctx_, settings, 1.0, parameters_.get());
    QST_ASSERT_OK(optimizer);
    QST_ASSERT_OK((*optimizer)->Step(0.1, 1));
    const auto before_clipping = (*optimizer)->FetchGradientNorm();
    QST_ASSERT_OK(before_clipping);
    EXPECT_NEAR(*before_clipping, norm, 1e-9 * norm);
    const bool is_clipped = clip > 0.0 && clip < norm;
    const float expected = (1.0f - 0.9f) * (is_clipped ? 0.125f : 0.5f);
    const std::vector<float> moment = Buffer(ParameterBuffer::kExpAvg);
    for (const ParameterInfo& info : parameters_->layout()) {
      ASSERT_FLOAT_EQ(moment[static_cast<std::size_t>(info.offset)], expected) << info.name << ", limit " << clip;
    }
  }
}

QST_INSTANTIATE_DEVICE_TEST(OptimizerTest);

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
