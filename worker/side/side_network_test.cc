#include "worker/side/side_network.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "proto/support/status_matchers.h"
#include "worker/side/testing/golden.h"

namespace qst {
namespace {

using testing::HasSubstr;

// Float32 through two layers against float64: a few hundred roundings of values around 1.
constexpr double kRelative = 2e-5;
constexpr double kAbsolute = 2e-6;

void ExpectClose(const std::vector<float>& expected, const float* actual, const std::string& what) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(expected[i], actual[i], kAbsolute + kRelative * std::abs(expected[i])) << what << " element " << i;
  }
}

OpContext Context(ThreadPool* threads, CpuIsa isa = CpuIsa::kAuto) {
  OpContext ctx;
  ctx.threads = threads;
  const auto resolved = ResolveIsa(isa);
  QST_EXPECT_OK(resolved);
  ctx.isa = *resolved;
  return ctx;
}

struct GoldenParam {
  std::string name;
  DType dtype;
};

class SideNetworkGoldenTest : public testing::TestWithParam<GoldenParam> {
 protected:
  SideNetworkGoldenTest() : threads_(2), ctx_(Context(&threads_)), golden_(GetParam().name) {
    auto network = SideNetwork::Create(golden_.config(), golden_.frozen(), /*seed=*/1);
    QST_EXPECT_OK(network);
    network_ = std::move(network).value();
    golden_.LoadParameters(&network_->parameters());
  }
  HiddenStateSource States() const { return golden_.HiddenStates(GetParam().dtype); }

  ThreadPool threads_;
  OpContext ctx_;
  GoldenCase golden_;
  std::unique_ptr<SideNetwork> network_;
};

TEST_P(SideNetworkGoldenTest, ForwardMatchesPyTorch) {
  Predictions predictions;
  std::vector<std::vector<float>> states;
  QST_ASSERT_OK(network_->Evaluate(ctx_, golden_.batch(), States(), &predictions,
                                   [&](std::int64_t layer, const ConstMatrixView& state) {
                                     ASSERT_EQ(layer, static_cast<std::int64_t>(states.size()));
                                     states.emplace_back(state.row<float>(0), state.row<float>(state.rows));
                                   }));
  ASSERT_EQ(states.size(), golden_.expected()["side_states"].size());
  for (std::size_t i = 0; i < states.size(); ++i) {
    ExpectClose(golden_.expected()["side_states"][i], states[i].data(), "side state");
  }
  ExpectClose(golden_.expected()["losses"], predictions.losses.data(), "loss");
  ExpectClose(golden_.expected()["probabilities"], predictions.probabilities.data(), "probability");
  EXPECT_EQ(predictions.predicted, golden_.expected()["predicted"].get<std::vector<std::int32_t>>());
}

TEST_P(SideNetworkGoldenTest, EveryGradientMatchesPyTorch) {
  Predictions predictions;
  const float scale = 1.0f / static_cast<float>(golden_.batch().rows.size());
  QST_ASSERT_OK(network_->AccumulateGradients(ctx_, golden_.batch(), States(), scale, &predictions));
  ExpectClose(golden_.expected()["losses"], predictions.losses.data(), "loss");
  for (const ParameterInfo& info : network_->parameters().layout()) {
    const std::vector<float> expected = golden_.expected()["gradients"][info.name];
    ASSERT_EQ(static_cast<std::int64_t>(expected.size()), info.num_elems()) << info.name;
    ExpectClose(expected, network_->parameters().gradients() + info.offset, info.name);
  }
}

TEST_P(SideNetworkGoldenTest, GradientsOfTwoCallsAddUp) {
  Predictions predictions;
  QST_ASSERT_OK(network_->AccumulateGradients(ctx_, golden_.batch(), States(), 1.0f, &predictions));
  const std::vector<float> once(network_->parameters().gradients(),
                                network_->parameters().gradients() + network_->parameters().size());
  QST_ASSERT_OK(network_->AccumulateGradients(ctx_, golden_.batch(), States(), 1.0f, &predictions));
  for (std::size_t i = 0; i < once.size(); ++i) {
    ASSERT_NEAR(2.0f * once[i], network_->parameters().gradients()[i], 1e-5 + 1e-5 * std::abs(once[i])) << i;
  }
}

TEST_P(SideNetworkGoldenTest, ThreadsDoNotChangeABit) {
  Predictions expected;
  QST_ASSERT_OK(network_->AccumulateGradients(ctx_, golden_.batch(), States(), 0.25f, &expected));
  const std::vector<float> gradients(network_->parameters().gradients(),
                                     network_->parameters().gradients() + network_->parameters().size());
  ThreadPool four(4);
  network_->parameters().ZeroGradients();
  Predictions actual;
  QST_ASSERT_OK(network_->AccumulateGradients(Context(&four), golden_.batch(), States(), 0.25f, &actual));
  EXPECT_EQ(expected.losses, actual.losses);
  EXPECT_EQ(gradients, std::vector<float>(network_->parameters().gradients(),
                                          network_->parameters().gradients() + network_->parameters().size()));
}

std::vector<GoldenParam> AllCases() {
  std::vector<GoldenParam> out;
  for (const std::string& name : GoldenCase::Names()) {
    out.push_back({name, DType::kF32});
    out.push_back({name, DType::kBF16});
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Cases, SideNetworkGoldenTest, testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name + "_" + DTypeName(info.param.dtype); });

class SideNetworkTest : public testing::Test {
 protected:
  SideNetworkTest() : threads_(2), ctx_(Context(&threads_)) {}
  ThreadPool threads_;
  OpContext ctx_;
};

TEST_F(SideNetworkTest, StartsAsTheUntouchedBackboneToTheLastBit) {
  const GoldenCase golden("untouched_causal_lm");
  std::vector<Predictions> predictions(2);
  for (int seed = 0; seed < 2; ++seed) {
    // Whatever the side network's start values are, output mix 1 hides them.
    auto network = SideNetwork::Create(golden.config(), golden.frozen(), seed);
    QST_ASSERT_OK(network);
    QST_ASSERT_OK((*network)->Evaluate(ctx_, golden.batch(), golden.HiddenStates(DType::kBF16), &predictions[seed]));
  }
  EXPECT_EQ(predictions[0].losses, predictions[1].losses);
}

TEST_F(SideNetworkTest, ASequenceDoesNotDependOnItsNeighbours) {
  const GoldenCase golden("paper_causal_lm");
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 3);
  QST_ASSERT_OK(network);
  golden.LoadParameters(&(*network)->parameters());
  Predictions whole;
  QST_ASSERT_OK((*network)->Evaluate(ctx_, golden.batch(), golden.HiddenStates(DType::kF32), &whole));
  // The last sequence (rows 6 to 9) alone.
  SideBatch alone;
  alone.offsets = {0, 4};
  alone.rows = {0, 2};
  alone.targets = {golden.batch().targets[3], golden.batch().targets[4]};
  Predictions part;
  const HiddenStateSource all = golden.HiddenStates(DType::kF32);
  QST_ASSERT_OK((*network)->Evaluate(
      ctx_, alone,
      [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> { return Rows(*all(layer), 6, 10); }, &part));
  EXPECT_EQ(part.losses, std::vector<float>(whole.losses.begin() + 3, whole.losses.end()));
}

TEST_F(SideNetworkTest, AMicroBatchWithoutTargetsHasNoGradient) {
  const GoldenCase golden("paper_causal_lm");
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 3);
  QST_ASSERT_OK(network);
  SideBatch batch = golden.batch();
  batch.rows.clear();
  batch.targets.clear();
  Predictions predictions;
  QST_ASSERT_OK((*network)->AccumulateGradients(ctx_, batch, golden.HiddenStates(DType::kF32), 1.0f, &predictions));
  EXPECT_TRUE(predictions.losses.empty());
  for (std::int64_t i = 0; i < (*network)->parameters().size(); ++i) {
    ASSERT_EQ((*network)->parameters().gradients()[i], 0.0f);
  }
}

TEST_F(SideNetworkTest, NamesThePlaceOfTheFirstNonFiniteValue) {
  const GoldenCase golden("paper_causal_lm");
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 3);
  QST_ASSERT_OK(network);
  golden.LoadParameters(&(*network)->parameters());
  (*network)->parameters().Value("model.qst_layers.1.mlp.down_proj.weight").row<float>(0)[0] = NAN;
  Predictions predictions;
  QST_ASSERT_OK(
      (*network)->AccumulateGradients(ctx_, golden.batch(), golden.HiddenStates(DType::kF32), 1.0f, &predictions));
  EXPECT_TRUE(std::isnan(predictions.losses[0]));
  EXPECT_EQ((*network)->DescribeNonFinite(), "side layer 2");
}

TEST_F(SideNetworkTest, RefusesBatchesThatDoNotFit) {
  const GoldenCase golden("paper_causal_lm");
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 3);
  QST_ASSERT_OK(network);
  Predictions predictions;
  SideBatch batch = golden.batch();
  batch.rows.back() = 10;
  EXPECT_THAT((*network)->Evaluate(ctx_, batch, golden.HiddenStates(DType::kF32), &predictions),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row 10 of target 4")));
  batch = golden.batch();
  batch.offsets.back() = 9;
  EXPECT_THAT((*network)->Evaluate(ctx_, batch, golden.HiddenStates(DType::kF32), &predictions),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("hidden state of layer 0 is [10, 16]")));
  FrozenHead frozen = golden.frozen();
  frozen.lm_head = {};
  EXPECT_THAT(SideNetwork::Create(golden.config(), frozen, 1), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(SideNetworkTest, PassesOnTheErrorOfTheHiddenStates) {
  const GoldenCase golden("paper_causal_lm");
  auto network = SideNetwork::Create(golden.config(), golden.frozen(), 3);
  QST_ASSERT_OK(network);
  Predictions predictions;
  const HiddenStateSource good = golden.HiddenStates(DType::kF32);
  EXPECT_THAT((*network)->AccumulateGradients(
                  ctx_, golden.batch(),
                  [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
                    if (layer == 2) return absl::UnavailableError("stage 1 is lost");
                    return good(layer);
                  },
                  1.0f, &predictions),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("stage 1 is lost")));
}

TEST_F(SideNetworkTest, MemoryEstimateCoversWhatTrainingTakes) {
  for (const std::string& name : GoldenCase::Names()) {
    const GoldenCase golden(name);
    auto network = SideNetwork::Create(golden.config(), golden.frozen(), 3);
    QST_ASSERT_OK(network);
    Predictions predictions;
    QST_ASSERT_OK(
        (*network)->AccumulateGradients(ctx_, golden.batch(), golden.HiddenStates(DType::kF32), 1.0f, &predictions));
    const SideMemory memory = EstimateSideMemory(golden.config(), golden.batch().num_tokens());
    EXPECT_GT(memory.activation_bytes, 0);
    // The arena's smallest block is 1 MiB.
    EXPECT_LE((*network)->arena_bytes(), memory.activation_bytes + (1 << 20));
    EXPECT_EQ(memory.parameter_bytes, 8 * (*network)->parameters().num_trainable());
  }
}

}  // namespace
}  // namespace qst
