#include "worker/side/side_memory.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/gemm/plan.h"
#include "worker/side/downsample.h"
#include "worker/side/head.h"
#include "worker/side/parameters.h"
#include "worker/side/predictions.h"
#include "worker/side/side_batch.h"
#include "worker/side/side_layer.h"

namespace qst {
namespace {

// Every allocation is rounded up to a cache line; these are more than a micro-batch makes.
constexpr std::int64_t kAllocationsPerLayer = 20;
constexpr std::int64_t kOtherAllocations = 40;
constexpr std::int64_t kAllocationSlackFloats = 15;

// A trainable layer of the side network, y = x W^T with W [n, k]: float32, but what it reads.
cuda::LinearShape TrainedLayer(std::int64_t num_rows, std::int64_t n, std::int64_t k, DType x) {
  cuda::LinearShape shape;
  shape.tokens = num_rows;
  shape.n = n;
  shape.k = k;
  shape.x = x;
  shape.y = DType::kF32;
  shape.w_is_quantized = false;
  shape.needs_grad_x = x == DType::kF32;  // hidden states are frozen
  shape.needs_grad_w = true;
  return shape;
}

// Scratch memory, which all ops of a stream share, and the workspace of matrix products.
std::int64_t CudaWorkspaceBytes(const SideNetworkConfig& config, std::int64_t num_tokens) {
  const std::int64_t d = config.backbone.hidden_size;
  const std::int64_t ds = config.hidden_size;
  const std::int64_t head_rows = std::min(num_tokens, HeadChunkRows(config, DeviceType::kCuda));
  std::int64_t scratch = 0;
  const auto add = [&](const cuda::LinearShape& shape) {
    scratch = std::max(scratch, cuda::LinearScratchBytes(shape));
  };
  const std::int64_t e = config.backbone.output_width();
  cuda::LinearShape head = TrainedLayer(head_rows, NumOutputs(config), e, DType::kF32);
  if (!config.has_score_head()) {
    head.w = DType::kBF16;
    head.needs_grad_x = config.has_side_network();
    head.needs_grad_w = false;
  }
  add(head);
  std::int64_t panels = cuda::LinearPanelBytes(head);
  if (e != d) {
    cuda::LinearShape projection = TrainedLayer(head_rows, e, d, DType::kF32);
    projection.needs_grad_x = false;
    projection.needs_grad_w = false;
    projection.w_is_quantized = true;
    projection.w = DType::kBF16;
    add(projection);
    panels = std::max(panels, cuda::LinearPanelBytes(projection));
  }
  if (config.has_side_network()) {
    const bool is_linear = config.downsample == v1::DOWNSAMPLE_LINEAR;
    add(TrainedLayer(num_tokens, is_linear ? ds : config.rank, d, DType::kBF16));
    add(TrainedLayer(num_tokens, config.intermediate_size, ds, DType::kF32));
    add(TrainedLayer(num_tokens, ds, config.intermediate_size, DType::kF32));
    cuda::LinearShape upsample = TrainedLayer(head_rows, e, ds, DType::kF32);
    upsample.has_bias = config.upsample_bias;
    add(upsample);
    // The attention's backward pass keeps one number a query and head.
    scratch = std::max(scratch, 4 * num_tokens * config.backbone.num_heads);
  }
  return scratch + cuda::kBlasWorkspaceBytes + panels;
}

}  // namespace

std::int64_t SideActivationFloats(const SideNetworkConfig& config, DeviceType device, std::int64_t num_tokens,
                                  std::int64_t num_targets) {
  const std::int64_t num_layers = config.backbone.num_layers;
  const std::int64_t ds = config.hidden_size;
  std::int64_t floats = BatchFloats(num_tokens) + PredictionFloats(num_tokens, 0);
  // Head and layers' backward follow each other.
  std::int64_t on_top = HeadFloats(config, device, num_targets);
  if (config.has_side_network()) {
    const std::int64_t down = DownsampleFloatsPerToken(config);
    // What forward keeps, and the gradient of the last state; with that of the one before, and scratch, on top.
    floats += num_tokens * (down + num_layers * (down + ds + SideLayerFloatsPerToken(config)) + ds);
    const std::int64_t backward =
        ds + std::max(SideLayerBackwardFloatsPerToken(config), DownsampleBackwardFloatsPerToken(config));
    on_top = std::max(on_top, num_tokens * backward);
  }
  return floats + on_top + kAllocationSlackFloats * (kAllocationsPerLayer * (num_layers + 1) + kOtherAllocations);
}

SideMemory EstimateSideMemory(const SideNetworkConfig& config, DeviceType device, std::int64_t num_tokens) {
  std::int64_t num_parameters = 0;
  for (const ParameterInfo& info : ParameterLayout(config)) num_parameters += info.num_elems();
  SideMemory memory;
  memory.parameter_bytes = 2 * num_parameters * 4;
  memory.optimizer_bytes = 2 * num_parameters * 4;
  memory.activation_bytes = 4 * SideActivationFloats(config, device, num_tokens, num_tokens);
  if (device == DeviceType::kCuda) memory.workspace_bytes = CudaWorkspaceBytes(config, num_tokens);
  return memory;
}

}  // namespace qst
