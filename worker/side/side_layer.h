// One side layer, ds wide, of the backbone's kind. LLaMA (side_layer.cc):
//   y   = x + O attention(n),                   n = RMSNorm(x)
//   out = y + Down(silu(Gate m) * Up m),        m = RMSNorm(y)
// OPT (opt_side_layer.cc), with biases, pre-norm or post-norm:
//   y   = x + O attention(n),                   n = LayerNorm(x)
//   out = y + W2 act(W1 m),                     m = LayerNorm(y)
// or
//   y   = LayerNorm(x + O attention(x))
//   out = LayerNorm(y + W2 act(W1 y))
#ifndef QST_WORKER_SIDE_SIDE_LAYER_H_
#define QST_WORKER_SIDE_SIDE_LAYER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "worker/side/arena.h"
#include "worker/side/downsample.h"
#include "worker/side/norm.h"
#include "worker/side/parameters.h"
#include "worker/side/side_attention.h"
#include "worker/side/side_config.h"

namespace qst {

// Parameters of one layer, or their gradients; what a kind has no use for is empty.
struct SideLayerTensors {
  NormTensors attention_norm, mlp_norm;
  SideAttentionTensors attention;
  SideLinear gate;  // LLaMA
  SideLinear up;    // LLaMA's Up, OPT's W1
  SideLinear down;  // LLaMA's Down, OPT's W2
};
// `layer` counts from 0.
SideLayerTensors FindSideLayerTensors(const SideNetworkConfig& config, std::int64_t layer, TensorSet set,
                                      Parameters* parameters);

// What forward leaves for backward, in the arena. Outputs of pre-norms and the product inside the feed-forward part are
// cheap and computed again.
struct SideLayerActivations {
  MatrixView x;  // [T, ds] input, the caller's
  NormStatistics attention_norm, mlp_norm;
  SideAttentionActivations attention;
  MatrixView y;                                       // [T, ds]
  MatrixView gate, up;                                // [T, intermediate]; gate of LLaMA only
  MatrixView before_attention_norm, before_mlp_norm;  // [T, ds], post-norm only
  MatrixView out;                                     // [T, ds]
};

// Room for what forward leaves, of the layer whose input will be in x. `cache` as for SideAttentionForward, or null.
[[nodiscard]] absl::Status AllocateSideLayer(const SideNetworkConfig& config, const MatrixView& x,
                                             const SideKvCache* cache, Arena* arena, SideLayerActivations* activations);
// The arena is left as it was.
[[nodiscard]] absl::Status SideLayerForward(const OpContext& ctx, const SideNetworkConfig& config,
                                            const SideLayerTensors& values, const SideSequences& sequences,
                                            const SideKvCache* cache, const SideLayerActivations& activations,
                                            Arena* arena);

// grad_out [T, ds] becomes the gradient of x. Adds to `gradients`.
[[nodiscard]] absl::Status SideLayerBackward(const OpContext& ctx, const SideNetworkConfig& config,
                                             const SideLayerTensors& values, const SideLayerTensors& gradients,
                                             const SideSequences& sequences, const SideLayerActivations& activations,
                                             const MatrixView& grad_out, Arena* arena);

// Floats that forward takes from the arena for each token, x not counted.
std::int64_t SideLayerFloatsPerToken(const SideNetworkConfig& config);
// The most that backward takes at once for each token.
std::int64_t SideLayerBackwardFloatsPerToken(const SideNetworkConfig& config);

// OPT's part of the five above.
[[nodiscard]] absl::Status AllocateOptSideLayer(const SideNetworkConfig& config, const MatrixView& x,
                                                const SideKvCache* cache, Arena* arena,
                                                SideLayerActivations* activations);
[[nodiscard]] absl::Status OptSideLayerForward(const OpContext& ctx, const SideNetworkConfig& config,
                                               const SideLayerTensors& values, const SideSequences& sequences,
                                               const SideKvCache* cache, const SideLayerActivations& activations,
                                               Arena* arena);
[[nodiscard]] absl::Status OptSideLayerBackward(const OpContext& ctx, const SideNetworkConfig& config,
                                                const SideLayerTensors& values, const SideLayerTensors& gradients,
                                                const SideSequences& sequences, const SideLayerActivations& activations,
                                                const MatrixView& grad_out, Arena* arena);
std::int64_t OptSideLayerFloatsPerToken(const SideNetworkConfig& config);
std::int64_t OptSideLayerBackwardFloatsPerToken(const SideNetworkConfig& config);

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_LAYER_H_
