// The coordinator's bound on memory, computed from a model's record, against what the worker computes from the tensors:
// never below it, or a placement fails on the worker, and not far above, or devices stay empty.
#include "server/memory_need.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "proto/support/status_matchers.h"
#include "worker/backbone/stage.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/compute_device.h"
#include "worker/side/side_config.h"
#include "worker/side/side_memory.h"
#include "worker/stream/live_stream.h"
#include "worker/testing/tiny_model.h"

namespace qst {
namespace {

// As an import reports it (worker/host_import.cc).
v1::Model RecordOf(const StoredModel& stored) {
  const ModelConfig& config = stored.config();
  v1::Model model;
  model.set_num_layers(config.num_layers);
  model.set_hidden_size(config.hidden_size);
  model.set_intermediate_size(config.intermediate_size);
  model.set_num_heads(config.num_heads);
  model.set_num_kv_heads(config.num_kv_heads);
  model.set_head_dim(config.head_dim);
  model.set_vocab_size(config.vocab_size);
  model.set_layer_bytes(stored.LayerBytes(0));
  model.set_embedding_bytes(stored.EmbeddingBytes());
  model.set_head_bytes(config.tie_word_embeddings ? 0 : stored.HeadBytes());
  model.set_family(ModelFamilyName(config.family));
  model.set_position_rows(config.position_rows());
  model.set_embedding_size(config.has_projections() ? config.embedding_width() : 0);
  return model;
}

ModelConfig LlamaConfig() {
  ModelConfig config = TinyLlamaConfig();
  config.num_kv_heads = 2;
  return config;
}

ModelConfig OptConfig(bool post_norm) {
  ModelConfig config = TinyOptConfig(post_norm);
  config.num_kv_heads = 8;
  config.embedding_size = post_norm ? 128 : 256;
  return config;
}

// By family.
class MemoryNeedAgreementTest : public testing::TestWithParam<ModelConfig> {
 protected:
  MemoryNeedAgreementTest() {
    ModelConfig config = GetParam();
    config.num_layers = 4;
    config.hidden_size = 256;
    config.intermediate_size = 704;
    config.num_heads = 8;
    config.head_dim = 32;
    const std::string folder = MakeTestFolder("source");
    QST_EXPECT_OK(WriteTinyModel(MakeTinyModel(config, 1), folder));
    ImportOptions options;
    options.source = folder;
    options.destination = MakeTestFolder("store") + "/model";
    QST_EXPECT_OK(ImportModel(options, nullptr));
    auto stored = StoredModel::Open(options.destination);
    QST_EXPECT_OK(stored);
    stored_ = *std::move(stored);
  }

  // What the worker takes for a stage and the passes on their way through it, in the wire type bf16.
  std::uint64_t WorkersStage(std::uint32_t first_layer, std::uint32_t num_layers, const JobLoad& load) {
    ThreadPool threads(1);
    OpContext ctx;
    ctx.threads = &threads;
    StageOptions options;
    options.first_layer = first_layer;
    options.num_layers = num_layers;
    options.max_cached_tokens = static_cast<std::int64_t>(load.cached_tokens);
    const auto memory = Stage::Estimate(*stored_, options, ctx, static_cast<std::int64_t>(load.pass_tokens));
    QST_EXPECT_OK(memory);
    const std::uint64_t pass_elems = load.pass_tokens * static_cast<std::uint64_t>(stored_->config().hidden_size);
    return static_cast<std::uint64_t>(memory->total_bytes()) + load.passes_in_flight * pass_elems * 4 +
           2 * pass_elems * 2;
  }

  void ExpectStageAgrees(const JobLoad& load) {
    const MemoryNeed need(RecordOf(*stored_), load, v1::DEVICE_KIND_CPU);
    for (const auto& [first, count] : {std::pair<std::uint32_t, std::uint32_t>{0, 4}, {0, 1}, {2, 2}}) {
      const std::uint64_t workers = WorkersStage(first, count, load);
      EXPECT_GE(need.StageBytes(first, count), workers) << "layers from " << first << ", " << count;
      EXPECT_LE(need.StageBytes(first, count), workers + workers / 4) << "layers from " << first << ", " << count;
    }
  }

  std::unique_ptr<StoredModel> stored_;
};

TEST_P(MemoryNeedAgreementTest, AStageInTraining) {
  for (const std::uint64_t tokens : {1, 300, 4096}) {
    JobLoad load;
    load.pass_tokens = tokens;
    load.passes_in_flight = 2;
    load.micro_batch_tokens = tokens;
    ExpectStageAgrees(load);
  }
}

TEST_P(MemoryNeedAgreementTest, AStageInGeneration) {
  JobLoad load;
  load.pass_tokens = 100;
  load.cached_tokens = 100;
  ExpectStageAgrees(load);
}

INSTANTIATE_TEST_SUITE_P(Families, MemoryNeedAgreementTest,
                         testing::Values(LlamaConfig(), OptConfig(false), OptConfig(true)), [](const auto& info) {
                           return absl::StrCat(info.param.model_type, info.param.is_post_norm ? "_post_norm" : "");
                         });

// Shapes of models: LLaMA-2-7B, SmolLM2-135M (tied head), LLaMA-2-70B, OPT-2.7B, OPT-350M, OPT-66B.
std::vector<BackboneDims> BackboneShapes() {
  std::vector<BackboneDims> shapes(6);
  shapes[0] = {"llama", 32, 4096, 11008, 32, 32, 32000};
  shapes[1] = {"llama", 30, 576, 1536, 9, 3, 49152};
  shapes[2] = {"llama", 80, 8192, 28672, 64, 8, 32000};
  shapes[3] = {"opt", 32, 2560, 10240, 32, 32, 50272};
  shapes[4] = {"opt", 24, 1024, 4096, 16, 16, 50272};
  shapes[4].embedding_size = 512;
  shapes[4].is_post_norm = true;
  shapes[4].has_final_norm = false;
  shapes[5] = {"opt", 64, 9216, 36864, 72, 72, 50272};
  return shapes;
}

TEST(MemoryNeedAgreementWithoutModelTest, TheSideNetworkOnEveryShapeDeviceAndWireType) {
  for (const BackboneDims& dims : BackboneShapes()) {
    for (const auto& [downsample, task] : {std::pair{v1::DOWNSAMPLE_ADAPTER, v1::TASK_TYPE_CAUSAL_LM},
                                           {v1::DOWNSAMPLE_LINEAR, v1::TASK_TYPE_CAUSAL_LM},
                                           {v1::DOWNSAMPLE_AVGPOOL, v1::TASK_TYPE_CAUSAL_LM},
                                           {v1::DOWNSAMPLE_ADAPTER, v1::TASK_TYPE_REGRESSION}}) {
      for (const DeviceType device : {DeviceType::kCpu, DeviceType::kCuda}) {
        for (const v1::WireDtype wire : {v1::WIRE_DTYPE_BF16, v1::WIRE_DTYPE_INT8}) {
          JobLoad load;
          load.pass_tokens = 4096;
          load.passes_in_flight = 2;
          load.wire_dtype = wire;
          load.side.set_preset(v1::SIDE_PRESET_TUNED);
          load.side.set_reduction(16);
          load.side.set_rank(16);
          load.side.set_downsample(downsample);
          load.micro_batch_tokens = 2048;
          load.task.set_type(task);
          v1::Model model;
          model.set_num_layers(dims.num_layers);
          model.set_hidden_size(dims.hidden_size);
          model.set_intermediate_size(dims.intermediate_size);
          model.set_num_heads(dims.num_heads);
          model.set_num_kv_heads(dims.num_kv_heads);
          model.set_vocab_size(dims.vocab_size);
          model.set_family(dims.family);
          model.set_embedding_size(dims.embedding_size);
          model.set_layer_bytes(1);
          const bool is_cuda = device == DeviceType::kCuda;
          const MemoryNeed need(model, load, is_cuda ? v1::DEVICE_KIND_CUDA : v1::DEVICE_KIND_CPU);

          const auto side = ResolveSideConfig(load.side, task, {}, dims);
          QST_ASSERT_OK(side);
          LiveStreamOptions options;
          options.hidden_size = dims.hidden_size;
          options.wire_dtype = wire == v1::WIRE_DTYPE_INT8 ? DType::kI8 : DType::kBF16;
          options.max_passes_in_flight = 2;
          options.max_pass_tokens = 4096;
          const std::uint64_t workers =
              static_cast<std::uint64_t>(EstimateSideMemory(*side, device, 2048).total_bytes() +
                                         LiveStream::StateBytes(options, 0, dims.num_layers));
          EXPECT_GE(need.SideBytes(), workers) << "width " << dims.hidden_size << ", downsample " << downsample;
          // What ops keep on a GPU depends on shapes in ways that the coordinator bounds by a constant.
          const std::uint64_t slack = workers / 10 + (is_cuda ? kContextBytes : 0);
          EXPECT_LE(need.SideBytes(), workers + slack) << "width " << dims.hidden_size;
        }
      }
    }
  }
}

}  // namespace
}  // namespace qst
