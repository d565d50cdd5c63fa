#include "server/memory_need.h"

#include <algorithm>

namespace qst {
namespace {

// Models of this family have layers of another kind than all others.
constexpr char kOpt[] = "opt";
// Parameters, optimizer, the side network's activations and all activations on CPU are float32.
constexpr std::uint64_t kFloat = 4;
// A stage's activations on a GPU, unless the job has them in float32.
constexpr std::uint64_t kHalf = 2;
// A stage's feed-forward part is computed in pieces of at most so many tokens; on a GPU of as many as these bytes hold,
// where that is more.
constexpr std::uint64_t kMlpTokens = 1024;
constexpr std::uint64_t kCudaMlpBytes = 1 << 30;
// The head works on so many rows at a time that their logits take at most so many bytes.
constexpr std::uint64_t kMinHeadRows = 16;
constexpr std::uint64_t kMaxHeadRows = 512;
constexpr std::uint64_t kLogitBytes = 64 << 20;
constexpr std::uint64_t kCudaMaxHeadRows = 4096;
constexpr std::uint64_t kCudaLogitBytes = 256 << 20;
// A token's ids, positions and targets, and what is predicted for it.
constexpr std::uint64_t kFloatsOfToken = 16;
// States of one layer that a stage has on their way at a time.
constexpr std::uint64_t kStatesUnderWay = 2;
// What a part takes of a GPU whatever its size: workspace of matrix products, panels of unpacked weights, staging.
constexpr std::uint64_t kCudaScratchBytes = 256 << 20;
// Classification without a label set in the job: the number of labels is known only when the data are read.
constexpr std::uint64_t kUnknownLabels = 64;

std::uint64_t DivideUp(std::uint64_t n, std::uint64_t by) { return (n + by - 1) / by; }
std::uint64_t RoundUp(std::uint64_t n, std::uint64_t to) { return DivideUp(n, to) * to; }

// One layer's states of `tokens` tokens in the wire type.
std::uint64_t WireBytes(v1::WireDtype dtype, std::uint64_t tokens, std::uint64_t hidden_size) {
  switch (dtype) {
    case v1::WIRE_DTYPE_F32:
      return tokens * hidden_size * 4;
    case v1::WIRE_DTYPE_INT8:
    case v1::WIRE_DTYPE_FP8:
      return tokens * (hidden_size + kFloat);
    default:
      return tokens * hidden_size * 2;
  }
}

}  // namespace

JobLoad LoadOfTraining(const v1::JobSpec& spec) {
  JobLoad load;
  load.pass_tokens = std::max(spec.train().backbone_batch_tokens(), spec.data().max_length());
  load.passes_in_flight = spec.train().max_passes_in_flight();
  load.wire_dtype = spec.train().wire_dtype();
  load.compute_dtype = spec.train().dtype();
  load.side = spec.side();
  load.task = spec.task();
  load.micro_batch_tokens = spec.train().micro_batch_tokens();
  load.has_linear_probe = spec.eval().linear_probe();
  return load;
}

JobLoad LoadOfGeneration(const v1::GenerateRequest& request, const v1::JobSpec* trained, std::uint64_t max_tokens) {
  JobLoad load;
  load.pass_tokens = max_tokens;
  load.wire_dtype = request.wire_dtype();
  load.cached_tokens = max_tokens;
  load.has_side_network = trained != nullptr;
  if (trained != nullptr) {
    load.compute_dtype = trained->train().dtype();
    load.side = trained->side();
    load.task = trained->task();
  }
  return load;
}

MemoryNeed::MemoryNeed(const v1::Model& model, const JobLoad& load, v1::DeviceKind device)
    : model_(model), load_(load), device_(device) {
  const std::uint64_t d = model.hidden_size();
  // A record of before these fields existed: as many key heads as query heads.
  const std::uint64_t heads = model.num_heads() > 0 ? model.num_heads() : std::max<std::uint64_t>(1, d / 128);
  const std::uint64_t kv_heads = model.num_kv_heads() > 0 ? model.num_kv_heads() : heads;
  const std::uint64_t head_dim = model.head_dim() > 0 ? model.head_dim() : DivideUp(d, heads);
  const std::uint64_t inner = model.intermediate_size() > 0 ? model.intermediate_size() : 4 * d;
  q_width_ = heads * head_dim;
  kv_width_ = kv_heads * head_dim;
  is_opt_ = model.family() == kOpt;
  output_width_ = model.embedding_size() > 0 ? model.embedding_size() : d;
  // As the worker works out the side network's widths; rotated heads are even.
  const std::uint64_t reduction = std::max<std::uint64_t>(1, load.side.reduction());
  const std::uint64_t side_head_dim = RoundUp(DivideUp(d, reduction * heads), is_opt_ ? 1 : 2);
  side_hidden_ = side_head_dim * heads;
  side_kv_ = side_head_dim * kv_heads;
  side_inner_ = RoundUp(DivideUp(inner, reduction), 8);
  inner_ = inner;
  heads_ = heads;
  const bool has_side_network = load.has_side_network && load.side.preset() != v1::SIDE_PRESET_PROBE;
  num_side_layers_ = has_side_network ? model.num_layers() : 0;
}

std::uint64_t MemoryNeed::StageBytes(std::uint32_t first_layer, std::uint32_t num_layers) const {
  if (!is_known()) return 0;
  const std::uint64_t d = model_.hidden_size();
  const std::uint64_t tokens = load_.pass_tokens;
  std::uint64_t bytes = num_layers * model_.layer_bytes();
  if (first_layer == 0) {
    bytes += model_.embedding_bytes();
    // Embedded tokens before they are projected to the layers' width.
    if (output_width_ != d) bytes += tokens * output_width_ * kFloat;
  }
  const bool is_cuda = device_ == v1::DEVICE_KIND_CUDA;
  const std::uint64_t element = is_cuda && load_.compute_dtype != v1::COMPUTE_DTYPE_F32 ? kHalf : kFloat;
  const std::uint64_t mlp_buffers = is_opt_ ? 1 : 2;
  const std::uint64_t mlp_tokens =
      is_cuda ? std::max(kMlpTokens, kCudaMlpBytes / (mlp_buffers * element * inner_)) : kMlpTokens;
  // The residual stream is float32 on both; 8 bytes are a token's id and position.
  bytes += tokens * (element * (d + 2 * q_width_ + 2 * kv_width_) + kFloat * d + 8);
  bytes += std::min(tokens, mlp_tokens) * element * mlp_buffers * inner_;
  bytes += element * num_layers * load_.cached_tokens * 2 * kv_width_;
  if (is_cuda) bytes += kCudaScratchBytes;
  // Residual streams that came ahead, and states that are leaving.
  bytes += load_.passes_in_flight * tokens * d * kFloat;
  return bytes + kStatesUnderWay * WireBytes(load_.wire_dtype, tokens, d);
}

bool MemoryNeed::HasScoreHead() const {
  return load_.task.type() == v1::TASK_TYPE_CLASSIFICATION || load_.task.type() == v1::TASK_TYPE_REGRESSION;
}

std::uint64_t MemoryNeed::NumOutputs() const {
  if (load_.task.type() == v1::TASK_TYPE_REGRESSION) return 1;
  if (load_.task.type() != v1::TASK_TYPE_CLASSIFICATION) return model_.vocab_size();
  return load_.task.labels_size() > 0 ? load_.task.labels_size() : kUnknownLabels;
}

std::uint64_t MemoryNeed::HeadRows() const {
  const bool is_cuda = device_ == v1::DEVICE_KIND_CUDA;
  const std::uint64_t rows =
      (is_cuda ? kCudaLogitBytes : kLogitBytes) / (kFloat * std::max<std::uint64_t>(1, NumOutputs()));
  return std::min(load_.micro_batch_tokens, std::clamp(rows, kMinHeadRows, is_cuda ? kCudaMaxHeadRows : kMaxHeadRows));
}

std::uint64_t MemoryNeed::HeadStateFloats() const {
  const std::uint64_t d = model_.hidden_size();
  return output_width_ == d ? d : d + output_width_;
}

std::uint64_t MemoryNeed::SideParameters() const {
  const std::uint64_t d = model_.hidden_size();
  const std::uint64_t ds = side_hidden_;
  const std::uint64_t e = output_width_;
  const std::uint64_t classifier = HasScoreHead() ? NumOutputs() * e : 0;
  if (num_side_layers_ == 0) return classifier;
  std::uint64_t down = 2 * ds;  // its norm
  switch (load_.side.downsample()) {
    case v1::DOWNSAMPLE_LINEAR:
      down += d * ds;
      break;
    case v1::DOWNSAMPLE_MAXPOOL:
    case v1::DOWNSAMPLE_AVGPOOL:
      break;
    default:
      down += load_.side.rank() * (d + ds);
  }
  // With two norms and gates; in family opt also biases.
  const std::uint64_t layer = is_opt_ ? 4 * ds * ds + 2 * ds * side_inner_ + 10 * ds + side_inner_
                                      : 2 * ds * (ds + side_kv_) + 3 * ds * side_inner_ + 3 * ds;
  const std::uint64_t up = e * ds + 2 * ds + 2 * e;
  return (num_side_layers_ + 1) * down + num_side_layers_ * layer + up + classifier;
}

std::uint64_t MemoryNeed::SideActivationBytes() const {
  const std::uint64_t ds = side_hidden_;
  const std::uint64_t tokens = load_.micro_batch_tokens;
  const std::uint64_t down = 2 * ds + 2 + load_.side.rank();
  // Of family opt as with norms that follow their blocks, which keep two more states.
  const std::uint64_t attention = 2 * ds + 2 * side_kv_;
  const std::uint64_t layer =
      is_opt_ ? 5 * ds + attention + heads_ + side_inner_ + 4 : 3 * ds + attention + heads_ + 2 * side_inner_ + 2;
  const std::uint64_t backward = 3 * ds + std::max((is_opt_ ? 2 : 4) * side_inner_, attention);
  const std::uint64_t head = HeadRows() * (HeadStateFloats() + 3 * output_width_ + 4 * ds + 2 + NumOutputs());
  if (num_side_layers_ == 0) return kFloat * (head + tokens * kFloatsOfToken);
  const std::uint64_t kept = tokens * (down + num_side_layers_ * (down + layer) + ds + kFloatsOfToken);
  return kFloat * (kept + std::max(head, tokens * backward));
}

std::uint64_t MemoryNeed::SideBytes() const {
  if (!is_known()) return 0;
  std::uint64_t bytes = device_ == v1::DEVICE_KIND_CUDA ? kCudaScratchBytes : 0;
  // The LM head, which is the embedding table where the two are tied.
  if (!HasScoreHead()) {
    bytes += model_.head_bytes() > 0 ? model_.head_bytes() : model_.embedding_bytes();
  }
  // A projection before it, at its widest.
  if (output_width_ != model_.hidden_size()) bytes += kFloat * output_width_ * model_.hidden_size();
  const bool is_trained = load_.micro_batch_tokens > 0;
  // Values; gradients and two moments where they are trained.
  bytes += SideParameters() * kFloat * (is_trained ? 4 : 1);
  bytes += kFloat * num_side_layers_ * load_.cached_tokens * 2 * side_kv_;
  if (is_trained) bytes += SideActivationBytes();
  if (load_.has_linear_probe) {
    const std::uint64_t e = output_width_;
    bytes += kFloat * (HeadRows() * (HeadStateFloats() + NumOutputs()) + 4 * NumOutputs() * e);
  }
  // All layers' states of the passes on their way; without a side network, the last layer's. That one is never
  // narrower than bf16, in which 8-bit ones of the pass that is read are unpacked.
  const std::uint64_t state = WireBytes(load_.wire_dtype, load_.pass_tokens, model_.hidden_size());
  const std::uint64_t half = WireBytes(v1::WIRE_DTYPE_BF16, load_.pass_tokens, model_.hidden_size());
  bytes += load_.passes_in_flight * (num_side_layers_ * state + std::max(state, half));
  return bytes + (state < half ? num_side_layers_ * half : 0);
}

}  // namespace qst
