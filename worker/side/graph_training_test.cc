// The same training with graphs and without, its products in TF32 as jobs have them: not a bit may differ, whatever
// shapes come.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/device_memory.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "proto/support/status_matchers.h"
#include "worker/side/random.h"
#include "worker/side/side_network.h"
#include "worker/side/testing/golden.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

constexpr std::int64_t kMaxTokens = 700;

// A micro-batch with hidden states at addresses of its own, in bf16.
struct Input {
  SideBatch batch;
  std::vector<DeviceMemory> states;
};

Input MakeInput(const OpContext& ctx, const SideNetworkConfig& config, const std::vector<std::int32_t>& lengths,
                std::uint64_t seed, bool has_targets = true) {
  Random random(seed, "input");
  Input input;
  input.batch.offsets = {0};
  for (const std::int32_t length : lengths) {
    const std::int32_t begin = input.batch.offsets.back();
    input.batch.offsets.push_back(begin + length);
    if (!has_targets) continue;
    // Of a language model, responses of many lengths.
    const auto first = static_cast<std::int32_t>(random.Next() % static_cast<std::uint64_t>(length));
    for (std::int32_t row = config.has_score_head() ? length - 1 : first; row < length; ++row) {
      input.batch.rows.push_back(begin + row);
      input.batch.targets.push_back(
          static_cast<std::int32_t>(random.Next() % static_cast<std::uint64_t>(NumOutputs(config))));
    }
  }
  const std::int64_t size = input.batch.num_tokens() * config.backbone.hidden_size;
  for (std::int64_t layer = 0; layer <= config.backbone.num_layers; ++layer) {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(size));
    for (std::uint16_t& value : values) value = F32ToBF16(random.Symmetric(1.5f));
    auto memory = DeviceMemory::CopyOf(ctx, values.data(), size * 2);
    QST_EXPECT_OK(memory);
    input.states.push_back(*std::move(memory));
  }
  return input;
}

struct Outcome {
  std::vector<float> losses;
  std::vector<float> gradients;  // of every step, one after another
  std::vector<float> values;     // at the end
  GraphStats stats;
};

class GraphTrainingGpuTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    QST_SKIP_WITHOUT_DEVICE(DeviceType::kCuda);
    if (!GoldenCase(GetParam()).config().has_side_network()) GTEST_SKIP() << "no layers";
    cuda::StreamOptions options;
    options.allow_tf32 = true;
    auto stream = cuda::DeviceOf(*TestCuda::StreamOrNull()).NewStream(options);
    QST_ASSERT_OK(stream);
    stream_ = *std::move(stream);
    ctx_.device = DeviceType::kCuda;
    ctx_.stream = stream_.get();
  }

  // A step a micro-batch, each with a learning rate and a scale of its own; after some an evaluation.
  Outcome Train(const GoldenCase& golden, const std::vector<std::vector<std::int32_t>>& micro_batches,
                bool uses_graphs) {
    auto made = SideNetwork::Create(ctx_, golden.config(), golden.frozen(), /*seed=*/1);
    QST_EXPECT_OK(made);
    SideNetwork& network = **made;
    golden.LoadParameters(&network.parameters());
    if (uses_graphs) network.UseGraphs(kMaxTokens);
    Outcome run;
    for (std::size_t i = 0; i < micro_batches.size(); ++i) {
      // Those of a length 0 have no targets.
      std::vector<std::int32_t> lengths = micro_batches[i];
      const bool has_targets = lengths.back() != 0;
      if (!has_targets) lengths.pop_back();
      const Input input = MakeInput(ctx_, golden.config(), lengths, i, has_targets);
      Step(&network, input, static_cast<int>(i) + 1, &run);
      // The states go, and those of the next micro-batch may come in their place.
      QST_EXPECT_OK(Synchronize(ctx_));
    }
    const auto values = network.parameters().Download(ParameterBuffer::kValues);
    QST_EXPECT_OK(values);
    run.values = *values;
    run.stats = network.graph_stats();
    return run;
  }

  void Step(SideNetwork* network, const Input& input, int step, Outcome* run) {
    const SideNetworkConfig& config = network->config();
    const HiddenStateSource states = [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
      const std::int64_t d = config.backbone.hidden_size;
      return ConstMatrixView(input.states[static_cast<std::size_t>(layer)].data(), DType::kBF16,
                             input.batch.num_tokens(), d, d);
    };
    Parameters& parameters = network->parameters();
    QST_EXPECT_OK(parameters.ZeroGradients());
    std::int64_t rows_seen = 0;
    QST_EXPECT_OK(
        network->AccumulateGradients(input.batch, states, 1.0f / static_cast<float>(step),
                                     [&](std::int64_t, const ConstMatrixView& state) { rows_seen += state.rows; }));
    EXPECT_EQ(rows_seen, input.batch.num_tokens() * (config.backbone.num_layers + 1));
    const auto predictions = network->FetchPredictions();
    QST_EXPECT_OK(predictions);
    run->losses.insert(run->losses.end(), predictions->losses.begin(), predictions->losses.end());
    const auto gradients = parameters.Download(ParameterBuffer::kGradients);
    QST_EXPECT_OK(gradients);
    run->gradients.insert(run->gradients.end(), gradients->begin(), gradients->end());
    AdamWParams adam;
    adam.learning_rate = 1e-3f * static_cast<float>(step);
    adam.step = step;
    QST_EXPECT_OK(AdamW(ctx_, adam, parameters.size(), parameters.data(ParameterBuffer::kValues),
                        parameters.data(ParameterBuffer::kGradients), parameters.data(ParameterBuffer::kExpAvg),
                        parameters.data(ParameterBuffer::kExpAvgSq)));
    if (step % 3 != 0) return;
    QST_EXPECT_OK(network->Evaluate(input.batch, states));
    const auto evaluated = network->FetchPredictions();
    QST_EXPECT_OK(evaluated);
    run->losses.insert(run->losses.end(), evaluated->losses.begin(), evaluated->losses.end());
  }

  // Both runs; the second one's statistics.
  GraphStats ExpectSameBits(const std::string& name, const std::vector<std::vector<std::int32_t>>& micro_batches) {
    const GoldenCase golden(name);
    const Outcome plain = Train(golden, micro_batches, false);
    const Outcome graphs = Train(golden, micro_batches, true);
    EXPECT_EQ(plain.losses, graphs.losses);
    EXPECT_EQ(plain.gradients, graphs.gradients);
    EXPECT_EQ(plain.values, graphs.values);
    EXPECT_EQ(plain.stats.num_captured, 0);
    EXPECT_FALSE(graphs.stats.is_failed);
    return graphs.stats;
  }

  cuda::StreamPtr stream_;
  OpContext ctx_;
};

TEST_P(GraphTrainingGpuTest, EqualShapes) {
  const GraphStats stats = ExpectSameBits(GetParam(), std::vector<std::vector<std::int32_t>>(5, {70, 58}));
  const std::int64_t units = GoldenCase(GetParam()).config().backbone.num_layers + 1;
  // Memory of the ops may grow once more in the second micro-batch, when others come first.
  EXPECT_GE(stats.num_replayed, 2 * units);
  EXPECT_LE(stats.num_plain, 2 * units);
}

TEST_P(GraphTrainingGpuTest, RaggedShapes) {
  // What is behind `//` is the number of tokens, and what becomes of it.
  const GraphStats stats = ExpectSameBits(GetParam(), {{20, 33},         // 53: 128
                                                       {30, 40, 31},     // 101: 128
                                                       {100},            // 128
                                                       {5, 3},           // few tokens go another way
                                                       {90, 37, 1},      // 128
                                                       {64, 40, 0},      // 128, no targets
                                                       {200, 150, 130},  // 480: 511
                                                       {300, 195, 10},   // 505: 511
                                                       {256, 256},       // a whole chunk of sums
                                                       {300, 220},       // 520: 640
                                                       {11, 12, 13},     // 128
                                                       {600, 80},        // 680: up to the limit
                                                       {500, 260},       // 760: above it
                                                       {5, 3},           //
                                                       {80, 20, 20}});   // 128
  EXPECT_GT(stats.num_replayed, 0);
}

INSTANTIATE_TEST_SUITE_P(Cases, GraphTrainingGpuTest, testing::ValuesIn(GoldenCase::Names()),
                         [](const auto& info) { return info.param; });

// Shapes that are rounded up come again where token counts alone hardly would.
TEST(GraphShapesTest, TokenCountsThatDifferBecomeFewShapes) {
  const auto rounded = [](std::int32_t num_tokens, std::int64_t max_tokens) {
    SideBatch batch;
    batch.offsets = {0, num_tokens};
    return RoundedShapeOf(batch, max_tokens).num_tokens;
  };
  for (const std::int32_t few : {1, 8}) EXPECT_EQ(rounded(few, 2048), few);
  EXPECT_EQ(rounded(9, 2048), 128);
  EXPECT_EQ(rounded(128, 2048), 128);
  EXPECT_EQ(rounded(129, 2048), 256);
  EXPECT_EQ(rounded(400, 2048), 511);
  EXPECT_EQ(rounded(511, 2048), 511);
  EXPECT_EQ(rounded(512, 2048), 512);
  EXPECT_EQ(rounded(513, 2048), 640);
  EXPECT_EQ(rounded(1900, 2048), 1920);
  EXPECT_EQ(rounded(2000, 2048), 2047);
  EXPECT_EQ(rounded(2000, 2010), 2010);
  EXPECT_EQ(rounded(2048, 2010), 2048);
  SideBatch batch;
  batch.offsets.resize(17);
  std::iota(batch.offsets.begin(), batch.offsets.end(), 0);
  EXPECT_EQ(RoundedShapeOf(batch, 2048).num_sequences, 32);
  batch.offsets.pop_back();
  EXPECT_EQ(RoundedShapeOf(batch, 2048).num_sequences, 16);
}

TEST(GraphSwitchGpuTest, TheEnvironmentTurnsGraphsOff) {
  QST_SKIP_WITHOUT_DEVICE(DeviceType::kCuda);
  const OpContext ctx = TestDeviceContext(DeviceType::kCuda, nullptr);
  const GoldenCase golden("paper_causal_lm");
  ASSERT_EQ(setenv("QST_CUDA_GRAPHS", "0", 1), 0);
  auto network = SideNetwork::Create(ctx, golden.config(), golden.frozen(), 1);
  QST_ASSERT_OK(network);
  (*network)->UseGraphs(kMaxTokens);
  ASSERT_EQ(unsetenv("QST_CUDA_GRAPHS"), 0);
  for (int i = 0; i < 3; ++i) {
    QST_ASSERT_OK((*network)->AccumulateGradients(golden.batch(), golden.HiddenStates(DType::kF32), 1.0f));
  }
  EXPECT_EQ((*network)->graph_stats().num_captured, 0);
  EXPECT_EQ((*network)->graph_stats().num_replayed, 0);
}

}  // namespace
}  // namespace qst
