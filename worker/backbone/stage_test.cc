#include "worker/backbone/stage.h"

#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/testing/reference_llama.h"
#include "worker/testing/test_device.h"
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

StageOptions Layers(std::int64_t first, std::int64_t count, DType cuda_dtype = DType::kBF16,
                    std::int64_t max_cached_tokens = 0) {
  StageOptions options;
  options.first_layer = first;
  options.num_layers = count;
  options.max_cached_tokens = max_cached_tokens;
  options.cuda_dtype = cuda_dtype;
  return options;
}

// Pass through `stage`, with `residual` on the host.
absl::Status Forward(const OpContext& ctx, Stage* stage, const TokenPass& pass, std::vector<float>* residual,
                     States* states) {
  const std::int64_t d = stage->hidden_size();
  const std::int64_t num_bytes = pass.num_tokens() * d * 4;
  QST_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::CopyOf(ctx, residual->data(), num_bytes));
  const absl::Status status = stage->Forward(pass, Matrix(memory.as<float>(), pass.num_tokens(), d),
                                             [&](std::int64_t layer, const ConstMatrixView& h) {
                                               if (states == nullptr) return absl::OkStatus();
                                               std::vector<float>& state = (*states)[layer];
                                               state.resize(h.rows * h.cols);
                                               return Download(ctx, h.data, h.rows * h.cols * 4, state.data());
                                             });
  QST_RETURN_IF_ERROR(Download(ctx, memory.data(), num_bytes, residual->data()));
  return status;
}

// Runs `pass` through stages of the given lengths, one after another.
States RunStages(const OpContext& ctx, const StoredModel& model, const std::vector<std::int64_t>& stage_layers,
                 const TokenPass& pass, DType cuda_dtype = DType::kBF16) {
  std::vector<float> residual(pass.num_tokens() * model.config().hidden_size, std::nanf(""));
  States states;
  std::int64_t first = 0;
  for (std::int64_t layers : stage_layers) {
    auto stage = Stage::Create(model, Layers(first, layers, cuda_dtype), ctx);
    QST_EXPECT_OK(stage);
    QST_EXPECT_OK(Forward(ctx, stage->get(), pass, &residual, &states));
    first += layers;
  }
  return states;
}

// Every state within `tolerance` of the reference, relative to itself and to the layer's typical size.
void ExpectNear(const States& actual, const std::vector<std::vector<double>>& expected, double tolerance,
                const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t layer = 0; layer < expected.size(); ++layer) {
    const std::vector<float>& values = actual.at(static_cast<std::int64_t>(layer));
    ASSERT_EQ(values.size(), expected[layer].size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(values[i], expected[layer][i], tolerance * (1.0 + std::abs(expected[layer][i])))
          << what << ", layer " << layer << ", element " << i;
    }
  }
}

// What the numbers between ops are rounded to leaves so much of the result unsure: about ten roundings a layer in three
// layers, on numbers of size 1.
double Tolerance(DType dtype) {
  if (dtype == DType::kBF16) return 6e-2;
  if (dtype == DType::kF16) return 8e-3;
  return 2e-5;
}

// Types that layers of this device may compute in.
std::vector<DType> DtypesOf(const OpContext& ctx) {
  if (ctx.device == DeviceType::kCpu) return {DType::kF32};
  return {DType::kF32, DType::kF16, DType::kBF16};
}

struct NamedConfig {
  const char* name;
  ModelConfig config;
};

// All kinds of layers; their numbers are checked against transformers in tests/oracle.
std::vector<NamedConfig> AllKinds() {
  ModelConfig windowed = TinyLlamaConfig();
  windowed.model_type = "qwen2";
  windowed.architecture = "Qwen2ForCausalLM";
  windowed.attention_bias = true;
  windowed.sliding_window = 5;
  windowed.first_window_layer = 1;
  return {{"llama", TinyLlamaConfig()},
          {"qwen2 with windows", windowed},
          {"opt", TinyOptConfig()},
          {"opt with norms that follow", TinyOptConfig(/*post_norm=*/true)}};
}

class StageTest : public DeviceTest {};
QST_INSTANTIATE_DEVICE_TEST(StageTest);

TEST_P(StageTest, HiddenStatesOfEveryLayerAgreeWithTheReference) {
  ModelConfig config = TinyLlamaConfig();
  for (const bool has_bias : {false, true}) {
    config.attention_bias = has_bias;
    config.attention_out_bias = has_bias;
    config.mlp_bias = has_bias;
    const TinyModel tiny = MakeTinyModel(config, 11);
    const auto model = Import(tiny, /*quantize=*/false);
    const std::vector<std::int32_t> tokens = Sequence(29, 3);
    const auto expected = ReferenceHiddenStates(tiny, tokens);
    for (const DType dtype : DtypesOf(ctx_)) {
      ExpectNear(RunStages(ctx_, *model, {3}, MakePass({tokens}), dtype), expected, Tolerance(dtype),
                 absl::StrCat(DTypeName(dtype), ", bias ", has_bias));
    }
    if (ctx_.device == DeviceType::kCpu) {
      OpContext portable = ctx_;
      portable.isa = CpuIsa::kPortable;
      ExpectNear(RunStages(portable, *model, {3}, MakePass({tokens})), expected, Tolerance(DType::kF32), "portable");
    }
  }
}

TEST_P(StageTest, WindowsOfUpperLayersAgreeWithTheReference) {
  ModelConfig config = TinyLlamaConfig();
  config.model_type = "qwen2";
  config.architecture = "Qwen2ForCausalLM";
  config.attention_bias = true;
  config.sliding_window = 6;
  config.first_window_layer = 1;
  const TinyModel tiny = MakeTinyModel(config, 2);
  const auto model = Import(tiny, /*quantize=*/false);
  const std::vector<std::int32_t> tokens = Sequence(31, 3);
  const auto expected = ReferenceHiddenStates(tiny, tokens);
  for (const DType dtype : DtypesOf(ctx_)) {
    ExpectNear(RunStages(ctx_, *model, {1, 2}, MakePass({tokens}), dtype), expected, Tolerance(dtype),
               DTypeName(dtype));
  }
}

TEST_P(StageTest, QuantizedModelAgreesWithTheReferenceOnItsOwnDequantizedWeights) {
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
  for (const DType dtype : DtypesOf(ctx_)) {
    // A GPU makes products with 4-bit weights of bf16 factors at most, f16 where it gets f16.
    const bool is_rounded = ctx_.device == DeviceType::kCuda && dtype == DType::kF32;
    ExpectNear(RunStages(ctx_, *model, {3}, MakePass({tokens}), dtype), expected,
               Tolerance(is_rounded ? DType::kBF16 : dtype), DTypeName(dtype));
  }
}

TEST_P(StageTest, CuttingIntoStagesChangesNoBit) {
  for (const NamedConfig& kind : AllKinds()) {
    const auto model = Import(MakeTinyModel(kind.config, 1), /*quantize=*/true);
    const TokenPass pass = MakePass({Sequence(40, 1), Sequence(3, 2), Sequence(90, 4)});
    for (const DType dtype : DtypesOf(ctx_)) {
      SCOPED_TRACE(absl::StrCat(kind.name, ", ", DTypeName(dtype)));
      const States one = RunStages(ctx_, *model, {3}, pass, dtype);
      EXPECT_EQ(one, RunStages(ctx_, *model, {3}, pass, dtype)) << "the same again";
      EXPECT_EQ(one, RunStages(ctx_, *model, {1, 2}, pass, dtype));
      EXPECT_EQ(one, RunStages(ctx_, *model, {1, 1, 1}, pass, dtype));
    }
  }
}

TEST_P(StageTest, ATokensStatesDoNotDependOnOtherSequencesInThePass) {
  for (const NamedConfig& kind : AllKinds()) {
    const auto model = Import(MakeTinyModel(kind.config, 1), /*quantize=*/true);
    // Alone they are few tokens, one too many to be few, and many.
    for (const int length : {1, 5, 8, 9, 33}) {
      const auto sequence = Sequence(length, 8);
      const TokenPass packed_pass = MakePass({Sequence(21, 1), sequence, Sequence(64, 5)});
      for (const std::vector<std::int64_t>& cut : {std::vector<std::int64_t>{3}, {1, 2}}) {
        const States alone = RunStages(ctx_, *model, cut, MakePass({sequence}));
        const States packed = RunStages(ctx_, *model, cut, packed_pass);
        ASSERT_EQ(alone.size(), 4u);
        for (const auto& [layer, expected] : alone) {
          ASSERT_EQ(static_cast<std::int64_t>(expected.size()), length * model->config().hidden_size);
          const float* actual = packed.at(layer).data() + 21 * model->config().hidden_size;
          EXPECT_EQ(0, std::memcmp(actual, expected.data(), expected.size() * sizeof(float)))
              << kind.name << ", " << length << " tokens, " << cut.size() << " stages, layer " << layer;
        }
      }
    }
  }
}

// Longer than one group of tokens of the MLP: 1024 on CPU, what a sixteenth of its memory holds on a GPU.
TEST_P(StageTest, GroupingTheMlpsTokensChangesNoBit) {
  ModelConfig config = TinyLlamaConfig();
  config.num_layers = 1;
  config.intermediate_size = 1024;
  const auto model = Import(MakeTinyModel(config, 3), /*quantize=*/true);
  std::vector<std::vector<std::int32_t>> sequences;
  for (int i = 0; i < 9; ++i) sequences.push_back(Sequence(120, i));
  OpContext ctx = ctx_;
  std::unique_ptr<cuda::Device> device;
  cuda::StreamPtr stream;
  if (ctx_.device == DeviceType::kCuda) {
    cuda::DeviceOptions options;
    options.memory_budget_bytes = 16 * 1024 * (2 * config.intermediate_size * 2);  // room for 1024 tokens
    device = cuda::Device::Open(options).value();
    stream = device->NewStream().value();
    ctx.stream = stream.get();
  }
  const States packed = RunStages(ctx, *model, {1}, MakePass(sequences));
  for (const int i : {0, 8}) {
    const States alone = RunStages(ctx, *model, {1}, MakePass({sequences[i]}));
    for (const auto& [layer, expected] : alone) {
      const float* actual = packed.at(layer).data() + i * 120 * config.hidden_size;
      EXPECT_EQ(0, std::memcmp(actual, expected.data(), expected.size() * sizeof(float)))
          << "sequence " << i << ", layer " << layer;
    }
  }
}

TEST_P(StageTest, TokensOneByOneThroughTheKvCacheEqualTheWholeSequence) {
  for (const NamedConfig& kind : AllKinds()) {
    const auto model = Import(MakeTinyModel(kind.config, 1), /*quantize=*/true);
    const std::vector<std::int32_t> tokens = Sequence(20, 6);
    for (const DType dtype : DtypesOf(ctx_)) {
      SCOPED_TRACE(absl::StrCat(kind.name, ", ", DTypeName(dtype)));
      const States whole = RunStages(ctx_, *model, {3}, MakePass({tokens}), dtype);
      auto stage = Stage::Create(*model, Layers(0, 3, dtype, /*max_cached_tokens=*/20), ctx_);
      QST_ASSERT_OK(stage);
      const std::int64_t d = model->config().hidden_size;
      for (int t = 0; t < 20;) {
        const int next = t == 0 ? 7 : t + 1;
        TokenPass pass = MakePass({std::vector<std::int32_t>(tokens.begin() + t, tokens.begin() + next)});
        pass.uses_kv_cache = true;
        pass.past_tokens = t;
        std::vector<float> residual(pass.num_tokens() * d);
        QST_ASSERT_OK(Forward(ctx_, stage->get(), pass, &residual, nullptr));
        for (std::size_t i = 0; i < residual.size(); ++i) {
          const float expected = whole.at(3)[t * d + i];
          // A GPU multiplies few tokens in another way; on CPU it is the same to the last bit.
          const double allowed =
              ctx_.device == DeviceType::kCuda ? Tolerance(DType::kBF16) * (1.0 + std::abs(expected)) : 0.0;
          ASSERT_NEAR(residual[i], expected, allowed) << "from token " << t;
        }
        t = next;
      }
    }
  }
}

TEST_P(StageTest, RefusesPassesThatDoNotFit) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  auto stage = Stage::Create(*model, Layers(0, 3, DType::kBF16, /*max_cached_tokens=*/8), ctx_);
  QST_ASSERT_OK(stage);
  const auto forward = [&](const TokenPass& pass) {
    std::vector<float> residual(pass.num_tokens() * 32);
    return Forward(ctx_, stage->get(), pass, &residual, nullptr);
  };
  EXPECT_THAT(forward(MakePass({{1, 2, 258}})),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("token 2 is 258")));
  EXPECT_THAT(forward(MakePass({{1, -1}})), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(forward(MakePass({Sequence(129, 1)})),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("129")));
  TokenPass cached = MakePass({Sequence(9, 1)});
  cached.uses_kv_cache = true;
  EXPECT_THAT(forward(cached), StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("KV cache")));
  TokenPass torn = MakePass({Sequence(9, 1)});
  torn.offsets = {0, 12};
  EXPECT_THAT(forward(torn), StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("offsets")));
}

TEST_P(StageTest, DynamicRotaryScalingIsNotAppliedBeyondTheContext) {
  ModelConfig config = TinyLlamaConfig();
  const std::vector<std::int32_t> tokens = Sequence(100, 1);
  const auto plain = Import(MakeTinyModel(config, 1), /*quantize=*/true);
  config.rope_scaling = {RopeScalingType::kDynamic, 4.0};
  const auto model = Import(MakeTinyModel(config, 1), /*quantize=*/true);
  EXPECT_EQ(RunStages(ctx_, *model, {3}, MakePass({tokens})), RunStages(ctx_, *plain, {3}, MakePass({tokens})));
  auto stage = Stage::Create(*model, Layers(0, 3), ctx_);
  QST_ASSERT_OK(stage);
  std::vector<float> residual(129 * 32);
  EXPECT_THAT(Forward(ctx_, stage->get(), MakePass({Sequence(129, 1)}), &residual, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("dynamic rotary scaling")));
}

TEST_P(StageTest, LayersThatTheModelLacksAndOtherTypesAreRefused) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  for (const StageOptions& options : {Layers(1, 3), Layers(0, 0), Layers(-1, 1), Layers(0, 3, DType::kI8)}) {
    EXPECT_THAT(Stage::Create(*model, options, ctx_), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(Stage::Estimate(*model, options, ctx_, 1), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_P(StageTest, EstimateCountsWhatAStageTakes) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/false);
  const std::int64_t element_bytes = ctx_.device == DeviceType::kCuda ? 2 : 4;
  const auto all = Stage::Estimate(*model, Layers(0, 3, DType::kBF16, /*max_cached_tokens=*/10), ctx_, 7);
  const auto last = Stage::Estimate(*model, Layers(1, 2), ctx_, 7);
  QST_ASSERT_OK(all);
  QST_ASSERT_OK(last);
  // In each layer q and o [32, 32], k and v [16, 32], gate, up and down of 48, two norms.
  const std::int64_t layer_bytes = 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32);
  const std::int64_t embedding_bytes = 4 * 258 * 32;
  // A GPU's pieces begin at multiples of 256.
  const std::int64_t alignment = ctx_.device == DeviceType::kCuda ? 32 * 256 : 0;
  EXPECT_GE(all->weight_bytes, 3 * layer_bytes + embedding_bytes);
  EXPECT_LE(all->weight_bytes, 3 * layer_bytes + embedding_bytes + 64 + alignment);
  EXPECT_GE(last->weight_bytes, 2 * layer_bytes);
  EXPECT_LE(last->weight_bytes, 2 * layer_bytes + 64 + alignment);
  EXPECT_EQ(all->cache_bytes, 3 * 10 * 2 * 16 * element_bytes);
  EXPECT_EQ(last->cache_bytes, 0);
  EXPECT_EQ(all->activation_bytes, 7 * (element_bytes * (3 * 32 + 2 * 16 + 2 * 48) + 4 * 32 + 8));
  EXPECT_EQ(last->activation_bytes, all->activation_bytes);
  EXPECT_EQ(all->op_bytes > 0, ctx_.device == DeviceType::kCuda);
  EXPECT_EQ(all->total_bytes(), all->weight_bytes + all->cache_bytes + all->activation_bytes + all->op_bytes);
}

TEST_P(StageTest, EstimateCountsWhatAStageOfOptTakes) {
  const auto model = Import(MakeTinyModel(TinyOptConfig(/*post_norm=*/true), 1), /*quantize=*/false);
  const std::int64_t element_bytes = ctx_.device == DeviceType::kCuda ? 2 : 4;
  const auto all = Stage::Estimate(*model, Layers(0, 3), ctx_, 7);
  const auto last = Stage::Estimate(*model, Layers(1, 2), ctx_, 7);
  QST_ASSERT_OK(all);
  QST_ASSERT_OK(last);
  // Each layer has q, k, v and o [32, 32], fc1 and fc2 of 48, their biases, two norms with biases.
  const std::int64_t layer_bytes = 4 * (4 * 32 * 32 + 2 * 48 * 32 + 5 * 32 + 48 + 4 * 32);
  // Tokens, 130 positions, the projection.
  const std::int64_t embedding_bytes = 4 * (258 * 16 + 130 * 32 + 32 * 16);
  const std::int64_t alignment = ctx_.device == DeviceType::kCuda ? 60 * 256 : 0;
  EXPECT_GE(all->weight_bytes, 3 * layer_bytes + embedding_bytes);
  EXPECT_LE(all->weight_bytes, 3 * layer_bytes + embedding_bytes + alignment);
  EXPECT_GE(last->weight_bytes, 2 * layer_bytes);
  EXPECT_LE(last->weight_bytes, 2 * layer_bytes + alignment);
  EXPECT_EQ(last->activation_bytes, 7 * (element_bytes * (5 * 32 + 48) + 4 * 32 + 8));
  EXPECT_EQ(all->activation_bytes, last->activation_bytes + 7 * 4 * 16);
}

TEST(CpuStageTest, ThreadCountChangesNoBit) {
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  const TokenPass pass = MakePass({Sequence(40, 1), Sequence(3, 2), Sequence(90, 4)});
  ThreadPool one(1);
  ThreadPool three(3);
  EXPECT_EQ(RunStages(TestDeviceContext(DeviceType::kCpu, &one), *model, {3}, pass),
            RunStages(TestDeviceContext(DeviceType::kCpu, &three), *model, {1, 2}, pass));
}

TEST(CudaStageTest, StageThatIsLargerThanTheBudgetIsRefused) {
  QST_SKIP_WITHOUT_DEVICE(DeviceType::kCuda);
  cuda::DeviceOptions options;
  options.memory_budget_bytes = 4096;
  const auto device = cuda::Device::Open(options);
  QST_ASSERT_OK(device);
  const auto stream = (*device)->NewStream();
  QST_ASSERT_OK(stream);
  const OpContext ctx{DeviceType::kCuda, nullptr, CpuIsa::kAuto, stream->get()};
  const auto model = Import(MakeTinyModel(TinyLlamaConfig(), 1), /*quantize=*/true);
  EXPECT_THAT(Stage::Create(*model, Layers(0, 3), ctx), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ((*device)->allocated_bytes(), 0);
}

}  // namespace
}  // namespace qst
