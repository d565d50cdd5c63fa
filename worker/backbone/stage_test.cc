#include "worker/backbone/stage.h"

#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/testing/reference_llama.h"
#include "worker/testing/tiny_model.h"

namespace qst {
namespace {

using States = std::map<std::int64_t, std::vector<float>>;  // by layer

std::unique_ptr<StoredModel> Import(const TinyModel& model, bool quantize) {
  const std::string folder = MakeTestFolder("source");
  QST_EXPECT_OK(WriteTinyModel(model, folder));
  ImportOptions options;
  options.source = folder;
  options.destination = MakeTestFolder("store") + "/model";
  if (!quantize) options.quantization.reset();
  QST_EXPECT_OK(ImportModel(options, nullptr));
  auto stored = StoredModel::Open(options.destination);
  QST_EXPECT_OK(stored);
  return std::move(stored).value();
}

TokenPass MakePass(const std::vector<std::vector<std::int32_t>>& sequences) {
  TokenPass pass;
  pass.offsets.push_back(0);
  for (const auto& sequence : sequences) {
    pass.tokens.insert(pass.tokens.end(), sequence.begin(), sequence.end());
    pass.offsets.push_back(static_cast<std::int32_t>(pass.tokens.size()));
  }
  return pass;
}

std::vector<std::int32_t> Sequence(int length, int seed) {
  std::vector<std::int32_t> tokens(length);
  for (int i = 0; i < length; ++i) tokens[i] = (seed * 37 + i * 101 + i * i * 7) % 258;
  return tokens;
}

class StageTest : public testing::Test {
 protected:
  // Runs `pass` through stages of the given lengths, one after another.
  States Run(const StoredModel& model, const std::vector<std::int64_t>& stage_layers, const TokenPass& pass,
             int num_threads = 2, CpuIsa isa = CpuIsa::kAuto) {
    ThreadPool threads(num_threads);
    OpContext ctx;
    ctx.threads = &threads;
    auto resolved = ResolveIsa(isa);
    QST_EXPECT_OK(resolved);
    ctx.isa = *resolved;
    const std::int64_t d = model.config().hidden_size;
    std::vector<float> residual(pass.num_tokens() * d, std::nanf(""));
    States states;
    std::int64_t first = 0;
    for (std::int64_t layers : stage_layers) {
      auto stage = Stage::Create(model, first, layers, /*max_cached_tokens=*/64);
      QST_EXPECT_OK(stage);
      QST_EXPECT_OK((*stage)->Forward(ctx, pass, Matrix(residual.data(), pass.num_tokens(), d),
                                      [&](std::int64_t layer, const ConstMatrixView& h) {
                                        states[layer].assign(h.row<float>(0), h.row<float>(0) + h.rows * h.cols);
                                        return absl::OkStatus();
                                      }));
      first += layers;
    }
    return states;
  }
};

TEST_F(StageTest, HiddenStatesOfEveryLayerAgreeWithTheReference) {
  ModelConfig config = TinyLlamaConfig();
  for (const bool has_bias : {false, true}) {
    config.attention_bias = has_bias;
    config.mlp_bias = has_bias;
    const TinyModel tiny = MakeTinyModel(config, 11);
    const auto model = Import(tiny, /*quantize=*/false);
    const std::vector<std::int32_t> tokens = Sequence(29, 3);
    const auto expected = ReferenceHiddenStates(tiny, tokens);
    for (const CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAuto}) {
      const States actual = Run(*model, {3}, MakePass({tokens}), 2, isa);
      ASSERT_EQ(actual.size(), expected.size());
      for (std::size_t layer = 0; layer < expected.size(); ++layer) {
        const std::vector<float>& values = actual.at(static_cast<std::int64_t>(layer));
        for (std::size_t i = 0; i < expected[layer].size(); ++i) {
          ASSERT_NEAR(values[i], expected[layer][i], 2e-5 * (1.0 + std::abs(expected[layer][i])))
              << "layer " << layer << ", element " << i << ", bias " << has_bias;
        }
      }
    }
  }
}

TEST_F(StageTest, QuantizedModelAgreesWithTheReferenceOnItsOwnDequantizedWeights) {
  TinyModel tiny = MakeTinyModel(TinyLlamaConfig(), 5);
  const auto model = Import(tiny, /*quantize=*/true);
  for (auto& [name, values] : tiny.tensors) {
    auto weight = model->Weight(name);
    if (!weight.ok() || !weight->is_quantized) continue;
    const std::vector<float> original = values;
    DequantizeRange(weight->quant4, 0, weight->quant4.num_elems(), values.data());
    EXPECT_NE(original, values) << name;
  }
  const std::vector<std::int32_t> tokens = Sequence(17, 9);
  const auto expected = ReferenceHiddenStates(tiny, tokens);
  const States actual = Run(*model, {3}, MakePass({tokens}));
  for (std::size_t layer = 0; layer < expected.size(); ++layer) {
    for (std::size_t i = 0; i < expected[layer].size(); ++i) {
      ASSERT_NEAR(actual.at(layer)[i], expected[layer][i], 2e-5 * (1.0 + std::abs(expected[layer][i])));
    }
  }
}

TEST_F(StageTest, CuttingIntoStagesAndThreadCountChangeNoBit) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  const TokenPass pass = MakePass({Sequence(40, 1), Sequence(3, 2), Sequence(90, 4)});
  const States one = Run(*model, {3}, pass, 1);
  EXPECT_EQ(one, Run(*model, {1, 2}, pass, 2));
  EXPECT_EQ(one, Run(*model, {1, 1, 1}, pass, 3));
}

TEST_F(StageTest, ATokensStatesDoNotDependOnOtherSequencesInThePass) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  const auto sequence = Sequence(33, 8);
  const States alone = Run(*model, {3}, MakePass({sequence}));
  const States packed = Run(*model, {3}, MakePass({Sequence(21, 1), sequence, Sequence(64, 5)}));
  for (const auto& [layer, expected] : alone) {
    const float* actual = packed.at(layer).data() + 21 * model->config().hidden_size;
    EXPECT_EQ(0, std::memcmp(actual, expected.data(), expected.size() * sizeof(float))) << "layer " << layer;
  }
}

TEST_F(StageTest, TokensOneByOneThroughTheKvCacheEqualTheWholeSequence) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  const std::vector<std::int32_t> tokens = Sequence(20, 6);
  const States whole = Run(*model, {3}, MakePass({tokens}));
  ThreadPool threads(2);
  OpContext ctx;
  ctx.threads = &threads;
  ctx.isa = *ResolveIsa(CpuIsa::kAuto);
  auto stage = Stage::Create(*model, 0, 3, /*max_cached_tokens=*/20);
  QST_ASSERT_OK(stage);
  const std::int64_t d = model->config().hidden_size;
  for (int t = 0; t < 20;) {
    TokenPass pass = MakePass({std::vector<std::int32_t>(tokens.begin() + t, tokens.begin() + (t == 0 ? 7 : t + 1))});
    pass.uses_kv_cache = true;
    pass.past_tokens = t;
    std::vector<float> residual(pass.num_tokens() * d);
    QST_ASSERT_OK((*stage)->Forward(ctx, pass, Matrix(residual.data(), pass.num_tokens(), d),
                                    [](std::int64_t, const ConstMatrixView&) { return absl::OkStatus(); }));
    EXPECT_EQ(0, std::memcmp(residual.data(), whole.at(3).data() + t * d, residual.size() * sizeof(float)))
        << "from token " << t;
    t += static_cast<int>(pass.num_tokens());
  }
}

TEST_F(StageTest, RefusesPassesThatDoNotFit) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  ThreadPool threads(1);
  OpContext ctx;
  ctx.threads = &threads;
  ctx.isa = *ResolveIsa(CpuIsa::kAuto);
  auto stage = Stage::Create(*model, 0, 3, /*max_cached_tokens=*/8);
  QST_ASSERT_OK(stage);
  const auto forward = [&](const TokenPass& pass) {
    std::vector<float> residual(pass.num_tokens() * 32);
    return (*stage)->Forward(ctx, pass, Matrix(residual.data(), pass.num_tokens(), 32),
                             [](std::int64_t, const ConstMatrixView&) { return absl::OkStatus(); });
  };
  EXPECT_THAT(forward(MakePass({{1, 2, 258}})), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(forward(MakePass({{1, -1}})), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(forward(MakePass({Sequence(129, 1)})),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("129")));
  TokenPass cached = MakePass({Sequence(9, 1)});
  cached.uses_kv_cache = true;
  EXPECT_THAT(forward(cached), StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("KV cache")));
  TokenPass torn = MakePass({Sequence(9, 1)});
  torn.offsets = {0, 12};
  EXPECT_THAT(forward(torn), StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("offsets")));
  EXPECT_THAT(Stage::Create(*model, 1, 3, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Stage::Create(*model, 0, 0, 0), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace qst
