#include "server/memory_need.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace qst {
namespace {

constexpr std::uint64_t kMegabyte = 1'000'000;

v1::Model Llama7B() {
  v1::Model model;
  model.set_num_layers(32);
  model.set_hidden_size(4096);
  model.set_intermediate_size(11008);
  model.set_num_heads(32);
  model.set_num_kv_heads(32);
  model.set_head_dim(128);
  model.set_vocab_size(32000);
  model.set_layer_bytes(104'500'000);
  model.set_embedding_bytes(262'144'000);
  model.set_head_bytes(262'152'192);
  return model;
}

v1::JobSpec Spec() {
  v1::JobSpec spec;
  spec.mutable_side()->set_reduction(16);
  spec.mutable_side()->set_rank(16);
  spec.mutable_data()->set_max_length(384);
  spec.mutable_train()->set_backbone_batch_tokens(1536);
  spec.mutable_train()->set_micro_batch_tokens(1536);
  spec.mutable_train()->set_max_passes_in_flight(1);
  spec.mutable_train()->set_wire_dtype(v1::WIRE_DTYPE_BF16);
  return spec;
}

MemoryNeed TrainingNeed(const v1::JobSpec& spec, v1::DeviceKind device = v1::DEVICE_KIND_CPU) {
  return MemoryNeed(Llama7B(), LoadOfTraining(spec), device);
}

TEST(MemoryNeedTest, AStageIsItsLayersAndWhatPassesThrough) {
  const MemoryNeed need = TrainingNeed(Spec());
  const std::uint64_t tokens = 1536;
  // Six buffers of the model's width, two of the feed-forward's for 1024 tokens, a residual stream, states of two
  // layers.
  const std::uint64_t passing =
      4 * (tokens * 6 * 4096 + 1024 * 2 * 11008) + tokens * 8 + tokens * 4096 * 4 + 2 * tokens * 4096 * 2;
  EXPECT_EQ(need.StageBytes(8, 8), 8 * 104'500'000 + passing);
  EXPECT_EQ(need.StageBytes(0, 8), 8 * 104'500'000 + passing + 262'144'000);
}

TEST(MemoryNeedTest, A7BModelNeedsLessThanThePapersPyTorchImplementation) {
  // The paper measures 7.3 GB with batch 4 of 384 tokens; 3.3 GB of it are the layers' weights.
  const MemoryNeed need = TrainingNeed(Spec());
  const std::uint64_t all = need.StageBytes(0, 32) + need.SideBytes();
  EXPECT_GT(all, 4'000 * kMegabyte);
  EXPECT_LT(all, 7'300 * kMegabyte);
}

v1::Model Llama70B() {
  v1::Model model = Llama7B();
  model.set_num_layers(80);
  model.set_hidden_size(8192);
  model.set_intermediate_size(28672);
  model.set_num_heads(64);
  model.set_num_kv_heads(8);
  model.set_layer_bytes(441'500'000);
  model.set_embedding_bytes(524'288'000);
  model.set_head_bytes(524'320'768);
  return model;
}

// The plan is an upper bound, and a close one, of what a GPU was seen to take: tests/bench/results/2026-11-26-gpu.md.
TEST(MemoryNeedTest, PlansAreALittleAboveWhatWasMeasuredOnAGpu) {
  const struct {
    v1::Model model;
    std::uint64_t pass_tokens, micro_batch_tokens, measured_megabytes;
  } cases[] = {
      {Llama7B(), 768, 384, 5224},    {Llama7B(), 1024, 1024, 5776}, {Llama7B(), 4096, 2048, 8374},
      {Llama7B(), 8192, 8192, 14240}, {Llama70B(), 384, 384, 43248}, {Llama70B(), 768, 384, 44141},
  };
  for (const auto& c : cases) {
    v1::JobSpec spec = Spec();
    spec.mutable_train()->set_backbone_batch_tokens(c.pass_tokens);
    spec.mutable_train()->set_micro_batch_tokens(c.micro_batch_tokens);
    spec.mutable_train()->set_max_passes_in_flight(2);
    const MemoryNeed need(c.model, LoadOfTraining(spec), v1::DEVICE_KIND_CUDA);
    const double planned = static_cast<double>(need.StageBytes(0, c.model.num_layers()) + need.SideBytes());
    const double ratio = planned / (static_cast<double>(c.measured_megabytes) * kMegabyte);
    SCOPED_TRACE(testing::Message() << c.model.num_layers() << " layers, passes of " << c.pass_tokens << ": planned "
                                    << planned / 1e9 << " GB, measured " << c.measured_megabytes / 1e3 << " GB");
    EXPECT_GE(ratio, 1.0);
    EXPECT_LE(ratio, 1.1);
  }
}

TEST(MemoryNeedTest, TheSideNetworkGrowsWithItsBatchWireTypeAndPassesInFlight) {
  v1::JobSpec spec = Spec();
  const std::uint64_t before = TrainingNeed(spec).SideBytes();
  spec.mutable_train()->set_max_passes_in_flight(2);
  const std::uint64_t one_pass = std::uint64_t{33} * 1536 * 4096 * 2;
  EXPECT_EQ(TrainingNeed(spec).SideBytes(), before + one_pass);
  spec.mutable_train()->set_max_passes_in_flight(1);
  spec.mutable_train()->set_wire_dtype(v1::WIRE_DTYPE_INT8);
  // A byte an element and a scale a token, and the pass that is read unpacked; the last layer's state stays as it was.
  EXPECT_EQ(TrainingNeed(spec).SideBytes(), before + std::uint64_t{32} * 1536 * (4096 + 4));
  spec.mutable_train()->set_wire_dtype(v1::WIRE_DTYPE_F32);
  EXPECT_EQ(TrainingNeed(spec).SideBytes(), before + one_pass);
  spec = Spec();
  spec.mutable_train()->set_micro_batch_tokens(768);
  EXPECT_LT(TrainingNeed(spec).SideBytes(), before);
}

TEST(MemoryNeedTest, AStageOnAGpuTakesMoreInFloat32) {
  v1::JobSpec spec = Spec();
  const auto stage = [&](v1::DeviceKind device) { return TrainingNeed(spec, device).StageBytes(0, 8); };
  spec.mutable_train()->set_dtype(v1::COMPUTE_DTYPE_BF16);
  const std::uint64_t half = stage(v1::DEVICE_KIND_CUDA);
  const std::uint64_t cpu = stage(v1::DEVICE_KIND_CPU);
  spec.mutable_train()->set_dtype(v1::COMPUTE_DTYPE_F16);
  EXPECT_EQ(stage(v1::DEVICE_KIND_CUDA), half);
  spec.mutable_train()->set_dtype(v1::COMPUTE_DTYPE_F32);
  // Of each token: the normed input, queries and attention's result, keys and values, two rows of the feed-forward
  // part.
  EXPECT_GE(stage(v1::DEVICE_KIND_CUDA), half + std::uint64_t{1536} * 2 * (5 * 4096 + 2 * 11008));
  EXPECT_EQ(stage(v1::DEVICE_KIND_CPU), cpu);
}

TEST(MemoryNeedTest, AProbeNeedsNoSideLayers) {
  v1::JobSpec spec = Spec();
  spec.mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
  const std::uint64_t network = TrainingNeed(spec).SideBytes();
  spec.mutable_side()->set_preset(v1::SIDE_PRESET_PROBE);
  EXPECT_LT(TrainingNeed(spec).SideBytes(), network / 10);
}

TEST(MemoryNeedTest, RegressionNeedsLessThanClassificationAndNoHead) {
  v1::JobSpec spec = Spec();
  const std::uint64_t with_head = TrainingNeed(spec).SideBytes();
  spec.mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
  const std::uint64_t classes = TrainingNeed(spec).SideBytes();
  spec.mutable_task()->set_type(v1::TASK_TYPE_REGRESSION);
  EXPECT_LT(TrainingNeed(spec).SideBytes(), classes);
  EXPECT_LT(TrainingNeed(spec).SideBytes() + 262'000'000, with_head);
}

TEST(MemoryNeedTest, ALinearProbeBesideTheNetworkIsCounted) {
  v1::JobSpec spec = Spec();
  spec.mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
  const std::uint64_t before = TrainingNeed(spec).SideBytes();
  spec.mutable_eval()->set_linear_probe(true);
  EXPECT_GT(TrainingNeed(spec).SideBytes(), before + 512 * 4096 * 4);
}

TEST(MemoryNeedTest, APartOnAGpuNeedsScratchMemoryBesides) {
  const MemoryNeed cpu = TrainingNeed(Spec());
  const MemoryNeed cuda = TrainingNeed(Spec(), v1::DEVICE_KIND_CUDA);
  EXPECT_GT(cuda.StageBytes(4, 1), cpu.StageBytes(4, 1) + 100 * kMegabyte);
  EXPECT_GT(cuda.SideBytes(), cpu.SideBytes() + 100 * kMegabyte);
}

TEST(MemoryNeedTest, GenerationKeepsKeysAndValuesAndTrainsNothing) {
  v1::GenerateRequest request;
  request.set_wire_dtype(v1::WIRE_DTYPE_F32);
  const auto stage = [&](std::uint64_t tokens) {
    return MemoryNeed(Llama7B(), LoadOfGeneration(request, nullptr, tokens), v1::DEVICE_KIND_CPU).StageBytes(8, 8);
  };
  // Per token and layer: key and value of the model's width. The rest is what any pass has.
  const std::uint64_t cache = std::uint64_t{2048} * 8 * 2 * 4096 * 4;
  EXPECT_GT(stage(4096) - stage(2048), cache);
  const MemoryNeed plain(Llama7B(), LoadOfGeneration(request, nullptr, 2048), v1::DEVICE_KIND_CPU);
  EXPECT_EQ(plain.SideBytes(), 262'152'192 + std::uint64_t{2048} * 4096 * 4);
  const v1::JobSpec spec = Spec();
  const MemoryNeed with_side(Llama7B(), LoadOfGeneration(request, &spec, 2048), v1::DEVICE_KIND_CPU);
  EXPECT_GT(with_side.SideBytes(), plain.SideBytes());
}

// OPT-2.7B.
v1::Model Opt() {
  v1::Model model;
  model.set_family("opt");
  model.set_num_layers(32);
  model.set_hidden_size(2560);
  model.set_intermediate_size(10240);
  model.set_num_heads(32);
  model.set_num_kv_heads(32);
  model.set_head_dim(80);
  model.set_vocab_size(50272);
  model.set_layer_bytes(41'000'000);
  model.set_embedding_bytes(267'000'000);
  model.set_position_rows(2050);
  return model;
}

TEST(MemoryNeedTest, OptHasOneFeedForwardBufferAndMayProjectItsEmbedding) {
  v1::Model model = Opt();
  const std::uint64_t tokens = 1536;
  const std::uint64_t passing =
      4 * (tokens * 6 * 2560 + 1024 * 10240) + tokens * 8 + tokens * 2560 * 4 + 2 * tokens * 2560 * 2;
  const auto stage = [&](std::uint32_t first) {
    return MemoryNeed(model, LoadOfTraining(Spec()), v1::DEVICE_KIND_CPU).StageBytes(first, 8);
  };
  EXPECT_EQ(stage(8), 8 * 41'000'000 + passing);
  EXPECT_EQ(stage(0), 8 * 41'000'000 + passing + 267'000'000);
  model.set_embedding_size(512);
  EXPECT_EQ(stage(8), 8 * 41'000'000 + passing);
  EXPECT_EQ(stage(0), 8 * 41'000'000 + passing + 267'000'000 + tokens * 512 * 4);
}

TEST(MemoryNeedTest, AModelWhoseRecordSaysTooLittleIsNotChecked) {
  v1::Model model;
  model.set_num_layers(6);
  model.set_hidden_size(64);
  const MemoryNeed need(model, LoadOfTraining(Spec()), v1::DEVICE_KIND_CUDA);
  EXPECT_FALSE(need.is_known());
  EXPECT_EQ(need.StageBytes(0, 6), 0u);
  EXPECT_EQ(need.SideBytes(), 0u);
}

TEST(MemoryNeedTest, ARecordWithoutDimensionsIsBoundedByUsualOnes) {
  v1::Model old = Llama7B();
  old.clear_intermediate_size();
  old.clear_num_heads();
  old.clear_num_kv_heads();
  old.clear_head_dim();
  const MemoryNeed need(old, LoadOfTraining(Spec()), v1::DEVICE_KIND_CPU);
  EXPECT_GE(need.StageBytes(0, 32), TrainingNeed(Spec()).StageBytes(0, 32));
  EXPECT_GE(need.SideBytes(), TrainingNeed(Spec()).SideBytes());
}

}  // namespace
}  // namespace qst
