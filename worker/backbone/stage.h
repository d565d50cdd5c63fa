// A contiguous range of backbone layers, forward only, in evaluation mode (no dropout). Stage 0 also embeds.
#ifndef QST_WORKER_BACKBONE_STAGE_H_
#define QST_WORKER_BACKBONE_STAGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/tensor.h"
#include "worker/stream/token_pass.h"

namespace qst {

class StoredModel;

// Receives h_f[layer] [T, d] (f32) when it is ready: layer 0 is the embedding, layer i the output of the i-th decoder
// layer (counted from 1). The view is valid during the call only; on CUDA for what the call enqueues in the stage's
// context. An error ends the pass.
using HiddenStateSink = std::function<absl::Status(std::int64_t layer, const ConstMatrixView& hidden_states)>;

struct StageOptions {
  // Layers [first_layer, first_layer + num_layers), counted from 0; the stage with first_layer 0 embeds tokens.
  std::int64_t first_layer = 0;
  std::int64_t num_layers = 0;
  // Capacity of the KV cache (at most the model's context), allocated when a pass first uses it.
  std::int64_t max_cached_tokens = 0;
  // What the ops of a layer hand on to each other on a GPU: bf16, f16 or f32; factors of products with 4-bit weights
  // are bf16 (f16) at most. On CPU it is f32. The residual stream is f32 on both.
  DType cuda_dtype = DType::kBF16;
};

// Bytes of a stage on its device.
struct StageMemory {
  // Read by ops: 4-bit codes, scales, norms; the whole embedding table if the stage embeds. On CPU they are pages of
  // the model's file, on a GPU a copy.
  std::int64_t weight_bytes = 0;
  std::int64_t cache_bytes = 0;
  // Of a pass, the residual stream included.
  std::int64_t activation_bytes = 0;
  // What ops keep on a GPU's stream: panels of unpacked weights, workspace. 0 on CPU.
  std::int64_t op_bytes = 0;
  std::int64_t total_bytes() const { return weight_bytes + cache_bytes + activation_bytes + op_bytes; }
};

// Not thread-safe: one pass at a time. On CUDA all work is enqueued, and the host waits for none of it.
class Stage {
 public:
  // On CUDA waits for what was enqueued.
  virtual ~Stage() = default;

  // A stage whose ops run in `ctx`. On CUDA the weights are copied to the device here, and `model` is not needed any
  // more; on CPU they are read in the mapping, and `model` must outlive the stage.
  // kInvalidArgument: range outside the model. kDataLoss: a tensor has another shape.
  // kResourceExhausted: beyond the device's budget.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(const StoredModel& model, const StageOptions& options,
                                                       const OpContext& ctx);
  // What a stage made so takes for passes of at most max_pass_tokens. Allocates nothing.
  static absl::StatusOr<StageMemory> Estimate(const StoredModel& model, const StageOptions& options,
                                              const OpContext& ctx, std::int64_t max_pass_tokens);

  // Runs one pass. residual [T, d] f32 in the device's memory: input of the first layer (ignored, and filled with the
  // embedding, by the stage that embeds), overwritten with the output of the last one. A token's values depend on its
  // sequence alone; on CUDA, with a KV cache, in the last bits also on how many tokens were given at a time.
  // kInvalidArgument: token outside the vocabulary, sequence longer than the model's positions or the KV cache.
  virtual absl::Status Forward(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink) = 0;

  virtual std::int64_t hidden_size() const = 0;
  virtual std::int64_t first_layer() const = 0;
  virtual std::int64_t num_layers() const = 0;
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_STAGE_H_
