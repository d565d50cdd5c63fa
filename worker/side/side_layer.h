// One side layer of the LLaMA kind, ds wide:
//   y   = x + O attention(rotary(Q n), rotary(K n), V n),   n = RMSNorm(x)
//   out = y + Down(silu(Gate m) * Up m),                    m = RMSNorm(y)
#ifndef QST_WORKER_SIDE_SIDE_LAYER_H_
#define QST_WORKER_SIDE_SIDE_LAYER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "worker/side/arena.h"
#include "worker/side/downsample.h"
#include "worker/side/parameters.h"
#include "worker/side/side_config.h"

namespace qst {

// Parameters of one layer, or their gradients. [out, in] each, norms [1, ds].
struct SideLayerTensors {
  MatrixView input_norm, q, k, v, o;
  MatrixView post_attention_norm, gate, up, down;
};
SideLayerTensors FindSideLayerTensors(std::int64_t layer, TensorSet set, Parameters* parameters);

// The packed sequences of a micro-batch as the layer needs them: memory of the device, owned by others.
struct SideSequences {
  SequenceOffsets offsets;
  const std::int32_t* positions = nullptr;  // [T], inside the sequence
  const float* inv_freq = nullptr;          // [head_dim / 2]
};
// Angle per position of each rotary pair: theta^(-2 j / head_dim).
std::vector<float> RotaryFrequencies(double theta, std::int64_t head_dim);

// What forward leaves for backward, in the arena. Norm outputs and the product inside the MLP are cheap and computed
// again.
struct SideLayerActivations {
  MatrixView x;                       // [T, ds] input, the caller's
  float* input_inv_rms = nullptr;     // [T]
  MatrixView q, k, v;                 // [T, ds], [T, kv], [T, kv]; q and k rotated
  MatrixView attention;               // [T, ds]
  float* log_sum_exp = nullptr;       // [T, heads]
  MatrixView y;                       // [T, ds]
  float* post_inv_rms = nullptr;      // [T]
  MatrixView gate, up;                // [T, intermediate]
  MatrixView out;                     // [T, ds]
};

// The rotated keys and the values of one layer for the tokens so far of one sequence: forward only.
struct SideKvCache {
  MatrixView keys;    // [capacity, kv]
  MatrixView values;  // [capacity, kv]
  std::int64_t num_tokens = 0;  // rows in use before the call
  SequenceOffsets key_offsets;  // of the one sequence: 0 and num_tokens + T, in the device's memory
};

// With a cache (one sequence; positions continue it) the new keys and values are written behind the cached ones and
// queries see all of them; num_tokens is left to the caller.
[[nodiscard]] absl::Status SideLayerForward(const OpContext& ctx, const SideNetworkConfig& config,
                                            const SideLayerTensors& values, const SideSequences& sequences,
                                            const MatrixView& x, const SideKvCache* cache, Arena* arena,
                                            SideLayerActivations* activations);

// grad_out [T, ds] becomes the gradient of x. Adds to `gradients`.
[[nodiscard]] absl::Status SideLayerBackward(const OpContext& ctx, const SideNetworkConfig& config,
                                             const SideLayerTensors& values, const SideLayerTensors& gradients,
                                             const SideSequences& sequences, const SideLayerActivations& activations,
                                             const MatrixView& grad_out, Arena* arena);

// Floats that forward takes from the arena for each token, x not counted.
std::int64_t SideLayerFloatsPerToken(const SideNetworkConfig& config);
// The most that backward takes at once for each token.
std::int64_t SideLayerBackwardFloatsPerToken(const SideNetworkConfig& config);

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_LAYER_H_
