#include "worker/side/side_network.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "kernels/testing/test_memory.h"
#include "proto/support/status_matchers.h"
#include "worker/side/host_matrix.h"
#include "worker/side/random.h"
#include "worker/side/side_memory.h"
#include "worker/side/testing/golden.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

using testing::HasSubstr;

// Float32 through two layers against float64: a few hundred roundings of values around 1.
constexpr double kRelative = 4e-5;
constexpr double kAbsolute = 4e-6;

// A GPU adds in another order, in which more is rounded on the way.
constexpr double kCudaFactor = 1.5;

void ExpectClose(const std::vector<float>& expected, const float* actual, DeviceType device, const std::string& what) {
  const double factor = device == DeviceType::kCuda ? kCudaFactor : 1.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double tolerance = factor * (kAbsolute + kRelative * std::abs(expected[i]));
    ASSERT_NEAR(expected[i], actual[i], tolerance) << what << " element " << i;
  }
}

// Parameters of the case, not of the seed.
std::unique_ptr<SideNetwork> MakeNetwork(const OpContext& ctx, const GoldenCase& golden) {
  auto network = SideNetwork::Create(ctx, golden.config(), golden.frozen(), /*seed=*/1);
  QST_EXPECT_OK(network);
  golden.LoadParameters(&(*network)->parameters());
  return *std::move(network);
}

std::vector<float> GradientsOf(const SideNetwork& network) {
  const auto gradients = network.parameters().Download(ParameterBuffer::kGradients);
  QST_EXPECT_OK(gradients);
  return *gradients;
}

Predictions PredictionsOf(const SideNetwork& network) {
  auto predictions = network.FetchPredictions();
  QST_EXPECT_OK(predictions);
  return *std::move(predictions);
}

struct GoldenParam {
  std::string name;
  DType dtype;
  DeviceType device;
};

class SideNetworkGoldenTest : public testing::TestWithParam<GoldenParam> {
 protected:
  SideNetworkGoldenTest() : threads_(2), golden_(GetParam().name) {}
  void SetUp() override {
    QST_SKIP_WITHOUT_DEVICE(GetParam().device);
    ctx_ = TestDeviceContext(GetParam().device, &threads_);
    network_ = MakeNetwork(ctx_, golden_);
  }
  HiddenStateSource States() const { return golden_.HiddenStates(GetParam().dtype); }

  ThreadPool threads_;
  OpContext ctx_;
  GoldenCase golden_;
  std::unique_ptr<SideNetwork> network_;
};

TEST_P(SideNetworkGoldenTest, ForwardMatchesPyTorch) {
  std::vector<std::vector<float>> states;
  QST_ASSERT_OK(network_->Evaluate(golden_.batch(), States(), [&](std::int64_t layer, const ConstMatrixView& state) {
    ASSERT_EQ(layer, static_cast<std::int64_t>(states.size()));
    const auto values = DownloadMatrix(ctx_, state);
    QST_ASSERT_OK(values);
    states.push_back(*values);
  }));
  ASSERT_EQ(states.size(), golden_.expected()["side_states"].size());
  for (std::size_t i = 0; i < states.size(); ++i) {
    ExpectClose(golden_.expected()["side_states"][i], states[i].data(), ctx_.device, "side state");
  }
  const Predictions predictions = PredictionsOf(*network_);
  ExpectClose(golden_.expected()["losses"], predictions.losses.data(), ctx_.device, "loss");
  ExpectClose(golden_.expected()["probabilities"], predictions.probabilities.data(), ctx_.device, "probability");
  EXPECT_EQ(predictions.predicted, golden_.expected()["predicted"].get<std::vector<std::int32_t>>());
}

TEST_P(SideNetworkGoldenTest, EveryGradientMatchesPyTorch) {
  const float scale = 1.0f / static_cast<float>(golden_.batch().rows.size());
  QST_ASSERT_OK(network_->AccumulateGradients(golden_.batch(), States(), scale));
  ExpectClose(golden_.expected()["losses"], PredictionsOf(*network_).losses.data(), ctx_.device, "loss");
  const std::vector<float> gradients = GradientsOf(*network_);
  for (const ParameterInfo& info : network_->parameters().layout()) {
    const std::vector<float> expected = golden_.expected()["gradients"][info.name];
    ASSERT_EQ(static_cast<std::int64_t>(expected.size()), info.num_elems()) << info.name;
    ExpectClose(expected, gradients.data() + info.offset, ctx_.device, info.name);
  }
}

TEST_P(SideNetworkGoldenTest, GradientsOfTwoCallsAddUp) {
  QST_ASSERT_OK(network_->AccumulateGradients(golden_.batch(), States(), 1.0f));
  const std::vector<float> once = GradientsOf(*network_);
  QST_ASSERT_OK(network_->AccumulateGradients(golden_.batch(), States(), 1.0f));
  const std::vector<float> twice = GradientsOf(*network_);
  for (std::size_t i = 0; i < once.size(); ++i) {
    ASSERT_NEAR(2.0f * once[i], twice[i], 1e-5 + 1e-5 * std::abs(once[i])) << i;
  }
}

TEST_P(SideNetworkGoldenTest, ThreadsDoNotChangeABitNorDoesASecondRun) {
  QST_ASSERT_OK(network_->AccumulateGradients(golden_.batch(), States(), 0.25f));
  const Predictions expected = PredictionsOf(*network_);
  ThreadPool four(4);
  const std::unique_ptr<SideNetwork> other = MakeNetwork(TestDeviceContext(GetParam().device, &four), golden_);
  QST_ASSERT_OK(other->AccumulateGradients(golden_.batch(), States(), 0.25f));
  EXPECT_EQ(expected.losses, PredictionsOf(*other).losses);
  EXPECT_EQ(GradientsOf(*network_), GradientsOf(*other));
}

std::vector<GoldenParam> AllCases() {
  std::vector<GoldenParam> out;
  for (const std::string& name : GoldenCase::Names()) {
    for (const DeviceType device : {DeviceType::kCpu, DeviceType::kCuda}) {
      out.push_back({name, DType::kF32, device});
      out.push_back({name, DType::kBF16, device});
    }
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Cases, SideNetworkGoldenTest, testing::ValuesIn(AllCases()), [](const auto& info) {
  return info.param.name + "_" + DTypeName(info.param.dtype) + "_" + TestDeviceName(info.param.device);
});

class SideNetworkTest : public DeviceTest {};

TEST_P(SideNetworkTest, StartsAsTheUntouchedBackboneToTheLastBit) {
  const GoldenCase golden("untouched_causal_lm");
  std::vector<Predictions> predictions(2);
  for (int seed = 0; seed < 2; ++seed) {
    // Whatever the side network's start values are, output mix 1 hides them.
    auto network = SideNetwork::Create(ctx_, golden.config(), golden.frozen(), seed);
    QST_ASSERT_OK(network);
    QST_ASSERT_OK((*network)->Evaluate(golden.batch(), golden.HiddenStates(DType::kBF16)));
    predictions[seed] = PredictionsOf(**network);
  }
  EXPECT_EQ(predictions[0].losses, predictions[1].losses);
}

TEST_P(SideNetworkTest, ASequenceDoesNotDependOnItsNeighbours) {
  const GoldenCase golden("paper_causal_lm");
  const std::unique_ptr<SideNetwork> network = MakeNetwork(ctx_, golden);
  const HiddenStateSource all = golden.HiddenStates(DType::kF32);
  QST_ASSERT_OK(network->Evaluate(golden.batch(), all));
  const std::vector<float> whole = PredictionsOf(*network).losses;
  // The last sequence (rows 6 to 9) before the others.
  const SideBatch& batch = golden.batch();
  const std::int64_t width = golden.config().backbone.hidden_size;
  SideBatch moved;
  moved.offsets = {0, 4};
  for (std::size_t s = 1; s + 1 < batch.offsets.size(); ++s) moved.offsets.push_back(4 + batch.offsets[s]);
  for (const int i : {3, 4, 0, 1, 2}) {
    moved.rows.push_back((batch.rows[i] + 4) % 10);
    moved.targets.push_back(batch.targets[i]);
  }
  std::vector<TestVector<float>> states;
  QST_ASSERT_OK(network->Evaluate(moved, [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
    const float* const data = all(layer)->row<float>(0);
    TestVector<float> state(data + 6 * width, data + 10 * width);
    state.insert(state.end(), data, data + 6 * width);
    states.push_back(std::move(state));
    return Matrix(const_cast<const float*>(states.back().data()), 10, width);
  }));
  const std::vector<float> actual = PredictionsOf(*network).losses;
  EXPECT_EQ(actual, (std::vector<float>{whole[3], whole[4], whole[0], whole[1], whole[2]}));
  // And alone. On CUDA linear layers of few tokens are another way to the same numbers.
  SideBatch alone;
  alone.offsets = {0, 4};
  alone.rows = {0, 2};
  alone.targets = {batch.targets[3], batch.targets[4]};
  QST_ASSERT_OK(network->Evaluate(
      alone, [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> { return Rows(*all(layer), 6, 10); }));
  const std::vector<float> part = PredictionsOf(*network).losses;
  ASSERT_EQ(part.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    if (ctx_.device == DeviceType::kCuda) {
      EXPECT_NEAR(part[i], whole[3 + i], 1e-5 * whole[3 + i]);
    } else {
      EXPECT_EQ(part[i], whole[3 + i]);
    }
  }
}

// Of each tensor in a direction of its own: the slope of the summed squared errors, by central differences.
TEST_P(SideNetworkTest, RegressionsGradientIsTheSlopeOfItsSquaredError) {
  const GoldenCase golden("lora_classification");
  SideNetworkConfig config = golden.config();
  config.task = v1::TASK_TYPE_REGRESSION;
  config.labels.clear();
  auto network = SideNetwork::Create(ctx_, config, golden.frozen(), /*seed=*/3);
  QST_ASSERT_OK(network);
  Parameters& parameters = (*network)->parameters();
  // Away from output mix 1, where the side network has no gradient.
  const ParameterInfo& mix = *parameters.Find("score_z");
  const std::vector<float> half(static_cast<std::size_t>(mix.num_elems()), 0.5f);
  QST_ASSERT_OK(parameters.Upload(ParameterBuffer::kValues, mix, half.data()));
  SideBatch batch = golden.batch();
  batch.targets.clear();
  for (std::size_t i = 0; i < batch.rows.size(); ++i) batch.values.push_back(0.5f * static_cast<float>(i) - 1.0f);
  const HiddenStateSource states = golden.HiddenStates(DType::kF32);
  const auto sum_of_losses = [&] {
    QST_EXPECT_OK((*network)->Evaluate(batch, states));
    const Predictions predictions = PredictionsOf(**network);
    double sum = 0.0;
    for (std::size_t i = 0; i < batch.values.size(); ++i) {
      const double difference = static_cast<double>(predictions.values[i]) - static_cast<double>(batch.values[i]);
      EXPECT_NEAR(predictions.losses[i], difference * difference, 1e-5);
      EXPECT_EQ(predictions.predicted[i], 0);
      sum += difference * difference;
    }
    EXPECT_TRUE(predictions.probabilities.empty());
    return sum;
  };
  constexpr float kScale = 0.25f;
  QST_ASSERT_OK((*network)->AccumulateGradients(batch, states, kScale));
  const std::vector<float> gradients = GradientsOf(**network);
  const auto all_values = parameters.Download(ParameterBuffer::kValues);
  QST_ASSERT_OK(all_values);
  Random random(17, "directions");
  for (const ParameterInfo& info : parameters.layout()) {
    const auto num = static_cast<std::size_t>(info.num_elems());
    const std::vector<float> values(all_values->begin() + info.offset,
                                    all_values->begin() + info.offset + info.num_elems());
    std::vector<float> direction(num);
    double expected = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < num; ++i) {
      direction[i] = random.Symmetric(1.0f);
      norm += direction[i] * direction[i];
      expected += static_cast<double>(direction[i]) * gradients[info.offset + i] / kScale;
    }
    const double step = 4e-3 / std::sqrt(norm);
    double slope = 0.0;
    for (const double sign : {1.0, -1.0}) {
      std::vector<float> moved = values;
      for (std::size_t i = 0; i < num; ++i) moved[i] += static_cast<float>(sign * step * direction[i]);
      QST_ASSERT_OK(parameters.Upload(ParameterBuffer::kValues, info, moved.data()));
      slope += sign * sum_of_losses() / (2 * step);
    }
    QST_ASSERT_OK(parameters.Upload(ParameterBuffer::kValues, info, values.data()));
    EXPECT_NEAR(slope, expected, 1e-3 * std::sqrt(norm) + 1e-2 * std::abs(expected)) << info.name;
  }
}

TEST_P(SideNetworkTest, RegressionRefusesClassesAndNumbersThatAreNone) {
  const GoldenCase golden("lora_classification");
  SideNetworkConfig config = golden.config();
  config.task = v1::TASK_TYPE_REGRESSION;
  config.labels.clear();
  auto network = SideNetwork::Create(ctx_, config, golden.frozen(), /*seed=*/3);
  QST_ASSERT_OK(network);
  const HiddenStateSource states = golden.HiddenStates(DType::kF32);
  EXPECT_THAT((*network)->Evaluate(golden.batch(), states),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("targets and 0 values")));
  SideBatch batch = golden.batch();
  batch.values.assign(batch.targets.size(), 1.0f);
  batch.targets.clear();
  batch.values[1] = NAN;
  EXPECT_THAT((*network)->Evaluate(batch, states),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("value 1 is not a finite number")));
}

TEST_P(SideNetworkTest, AMicroBatchWithoutTargetsHasNoGradient) {
  const GoldenCase golden("paper_causal_lm");
  const std::unique_ptr<SideNetwork> network = MakeNetwork(ctx_, golden);
  SideBatch batch = golden.batch();
  batch.rows.clear();
  batch.targets.clear();
  QST_ASSERT_OK(network->AccumulateGradients(batch, golden.HiddenStates(DType::kF32), 1.0f));
  EXPECT_TRUE(PredictionsOf(*network).losses.empty());
  EXPECT_EQ(GradientsOf(*network), std::vector<float>(static_cast<std::size_t>(network->parameters().size())));
}

TEST_P(SideNetworkTest, NamesThePlaceOfTheFirstNonFiniteValue) {
  const GoldenCase golden("paper_causal_lm");
  const std::unique_ptr<SideNetwork> network = MakeNetwork(ctx_, golden);
  const ParameterInfo& info = *network->parameters().Find("model.qst_layers.1.mlp.down_proj.weight");
  const std::vector<float> bad(static_cast<std::size_t>(info.num_elems()), NAN);
  QST_ASSERT_OK(network->parameters().Upload(ParameterBuffer::kValues, info, bad.data()));
  const HiddenStateSource states = golden.HiddenStates(DType::kBF16);
  std::vector<DeviceMemory> on_device;
  QST_ASSERT_OK(network->AccumulateGradients(
      golden.batch(),
      [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
        ConstMatrixView state = *states(layer);
        QST_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::CopyOf(ctx_, state.data, state.rows * state.cols * 2));
        state.data = memory.data();
        on_device.push_back(std::move(memory));
        return state;
      },
      1.0f));
  EXPECT_TRUE(std::isnan(PredictionsOf(*network).losses[0]));
  EXPECT_EQ(network->DescribeNonFinite(), "side layer 2");
}

TEST_P(SideNetworkTest, RefusesBatchesThatDoNotFit) {
  const GoldenCase golden("paper_causal_lm");
  const std::unique_ptr<SideNetwork> network = MakeNetwork(ctx_, golden);
  const auto evaluate = [&](const SideBatch& batch) {
    return network->Evaluate(batch, golden.HiddenStates(DType::kF32));
  };
  const auto code = absl::StatusCode::kInvalidArgument;
  SideBatch batch = golden.batch();
  batch.rows.back() = 10;
  EXPECT_THAT(evaluate(batch), StatusIs(code, HasSubstr("row 10 of target 4")));
  batch = golden.batch();
  batch.offsets.back() = 9;
  EXPECT_THAT(evaluate(batch), StatusIs(code, HasSubstr("hidden state of layer 0 is [10, 16]")));
  const std::int64_t vocab = golden.config().backbone.vocab_size;
  for (const std::int64_t target : {std::int64_t{-1}, vocab}) {
    batch = golden.batch();
    batch.targets[1] = static_cast<std::int32_t>(target);
    EXPECT_THAT(evaluate(batch), StatusIs(code, HasSubstr(absl::StrCat("target 1 is ", target))));
  }
  FrozenHead frozen = golden.frozen();
  frozen.lm_head = {};
  EXPECT_THAT(SideNetwork::Create(ctx_, golden.config(), frozen, 1), StatusIs(code));
}

TEST_P(SideNetworkTest, PassesOnTheErrorOfTheHiddenStates) {
  const GoldenCase golden("paper_causal_lm");
  const std::unique_ptr<SideNetwork> network = MakeNetwork(ctx_, golden);
  const HiddenStateSource good = golden.HiddenStates(DType::kF32);
  EXPECT_THAT(network->AccumulateGradients(
                  golden.batch(),
                  [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
                    if (layer == 2) return absl::UnavailableError("stage 1 is lost");
                    return good(layer);
                  },
                  1.0f),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("stage 1 is lost")));
}

TEST_P(SideNetworkTest, MemoryEstimateCoversWhatTrainingTakes) {
  for (const std::string& name : GoldenCase::Names()) {
    const GoldenCase golden(name);
    const std::unique_ptr<SideNetwork> network = MakeNetwork(ctx_, golden);
    const SideMemory memory = EstimateSideMemory(golden.config(), ctx_.device, golden.batch().num_tokens());
    EXPECT_GT(memory.activation_bytes, 0);
    for (int i = 0; i < 2; ++i) {
      QST_ASSERT_OK(network->AccumulateGradients(golden.batch(), golden.HiddenStates(DType::kF32), 1.0f));
      EXPECT_LE(network->arena_bytes(), memory.activation_bytes) << name;
      QST_ASSERT_OK(network->Evaluate(golden.batch(), golden.HiddenStates(DType::kF32)));
      EXPECT_LE(network->arena_bytes(), memory.activation_bytes) << name;
    }
    EXPECT_EQ(memory.parameter_bytes, 8 * network->parameters().num_trainable());
  }
}

QST_INSTANTIATE_DEVICE_TEST(SideNetworkTest);

TEST(SideMemoryTest, AGpuGivesNoMoreThanIsEstimated) {
  QST_SKIP_WITHOUT_DEVICE(DeviceType::kCuda);
  for (const char* name : {"paper_causal_lm", "linear_causal_lm", "reference_classification"}) {
    const GoldenCase golden(name);
    // A device of its own, so that nobody else's memory is counted.
    auto device = cuda::Device::Open(cuda::DeviceOptions());
    QST_ASSERT_OK(device);
    auto stream = (*device)->NewStream();
    QST_ASSERT_OK(stream);
    OpContext ctx;
    ctx.device = DeviceType::kCuda;
    ctx.stream = stream->get();
    const std::unique_ptr<SideNetwork> network = MakeNetwork(ctx, golden);
    for (int i = 0; i < 2; ++i) {
      QST_ASSERT_OK(network->AccumulateGradients(golden.batch(), golden.HiddenStates(DType::kBF16), 1.0f));
      PredictionsOf(*network);
    }
    const SideMemory memory = EstimateSideMemory(golden.config(), DeviceType::kCuda, golden.batch().num_tokens());
    // The device rounds pieces up to powers of two.
    EXPECT_LE((*device)->peak_bytes(), memory.total_bytes() + (1 << 20)) << name;
  }
}

TEST(SideMemoryTest, OnCpuOpsKeepNothing) {
  const GoldenCase golden("paper_causal_lm");
  EXPECT_EQ(EstimateSideMemory(golden.config(), DeviceType::kCpu, 1000).workspace_bytes, 0);
}

TEST(SideMemoryTest, AGpuComputesTheHeadInLargerChunks) {
  SideNetworkConfig config;
  config.backbone.vocab_size = 32000;
  EXPECT_EQ(HeadChunkRows(config, DeviceType::kCpu), 512);
  EXPECT_EQ(HeadChunkRows(config, DeviceType::kCuda), 2097);  // 256 MiB of logits
  config.backbone.vocab_size = 1 << 24;
  EXPECT_EQ(HeadChunkRows(config, DeviceType::kCpu), 16);
  config.backbone.vocab_size = 10;
  EXPECT_EQ(HeadChunkRows(config, DeviceType::kCuda), 4096);
}

}  // namespace
}  // namespace qst
