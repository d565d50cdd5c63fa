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
// layer (counted from 1). The view is valid during the call only. An error ends the pass.
using HiddenStateSink = std::function<absl::Status(std::int64_t layer, const ConstMatrixView& hidden_states)>;

// Not thread-safe: one pass at a time. `model` must outlive the stage, which reads the weights in the mapping.
class Stage {
 public:
  virtual ~Stage() = default;

  // Layers [first_layer, first_layer + num_layers) counted from 0; the stage with first_layer 0 embeds tokens.
  // max_cached_tokens: capacity of the KV cache (at most the model's context), allocated when a pass first uses it.
  // kInvalidArgument: range outside the model. kUnimplemented: family. kDataLoss: a tensor has another shape.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(const StoredModel& model, std::int64_t first_layer,
                                                       std::int64_t num_layers, std::int64_t max_cached_tokens);

  // Runs one pass. residual [T, d] f32: input of the first layer (ignored, and filled with the embedding, by the
  // stage that embeds), overwritten with the output of the last one. A token's values depend on its sequence alone.
  // kInvalidArgument: token outside the vocabulary, sequence longer than the model's positions or the KV cache.
  virtual absl::Status Forward(const OpContext& ctx, const TokenPass& pass, const MatrixView& residual,
                               const HiddenStateSink& sink) = 0;

  virtual std::int64_t hidden_size() const = 0;
  virtual std::int64_t first_layer() const = 0;
  virtual std::int64_t num_layers() const = 0;
  // Bytes of weights that the stage reads (4-bit codes, scales, norms; whole embedding table if it embeds), and of
  // activations for a pass of num_tokens.
  virtual std::int64_t weight_bytes() const = 0;
  virtual std::int64_t activation_bytes(std::int64_t num_tokens) const = 0;
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_STAGE_H_
