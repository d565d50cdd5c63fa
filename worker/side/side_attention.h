// The attention that side layers of all kinds have: y = x + O attention(Q n, K n, V n), with queries and keys rotated
// by their positions where the backbone does that. Side layers see their whole sequence, also where the backbone's have
// a window.
#ifndef QST_WORKER_SIDE_SIDE_ATTENTION_H_
#define QST_WORKER_SIDE_SIDE_ATTENTION_H_

#include <cstdint>
#include <string>
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

// A linear layer, or its gradients: [out, in], and [1, out] or empty.
struct SideLinear {
  MatrixView weight;
  MatrixView bias;
};
SideLinear FindSideLinear(const std::string& name, bool has_bias, TensorSet set, Parameters* parameters);
// y (+)= x W^T + b.
[[nodiscard]] absl::Status SideLinearForward(const OpContext& ctx, const ConstMatrixView& x, const SideLinear& values,
                                             const MatrixView& y, bool accumulate);
// Gradients of that: those of the layer always added, that of x added or set.
[[nodiscard]] absl::Status SideLinearBackward(const OpContext& ctx, const ConstMatrixView& grad_y,
                                              const ConstMatrixView& x, const SideLinear& values,
                                              const SideLinear& gradients, const MatrixView& grad_x, bool accumulate_x);

// The packed sequences of a micro-batch as the layer needs them: memory of the device, owned by others.
struct SideSequences {
  SequenceOffsets offsets;
  const std::int32_t* positions = nullptr;  // [T], inside the sequence
  const float* inv_freq = nullptr;          // [head_dim / 2], rotary kinds
};
// Angle per position of each rotary pair: theta^(-2 j / head_dim).
std::vector<float> RotaryFrequencies(double theta, std::int64_t head_dim);

struct SideAttentionTensors {
  SideLinear q, k, v, o;
};

// What forward leaves for backward, in the arena.
struct SideAttentionActivations {
  MatrixView q, k, v;            // [T, ds], [T, kv], [T, kv]; q and k rotated
  MatrixView attention;          // [T, ds]
  float* log_sum_exp = nullptr;  // [T, heads]
};

// The rotated keys and the values of one layer for the tokens so far of one sequence: forward only.
struct SideKvCache {
  MatrixView keys;              // [capacity, kv]
  MatrixView values;            // [capacity, kv]
  std::int64_t num_tokens = 0;  // rows in use before the call
  SequenceOffsets key_offsets;  // of the one sequence: 0 and num_tokens + T, in the device's memory
};

// Takes the activations from the arena; keys and values lie in the cache if there is one.
absl::Status AllocateSideAttention(const SideNetworkConfig& config, std::int64_t num_tokens, const SideKvCache* cache,
                                   Arena* arena, SideAttentionActivations* activations);
// With a cache (one sequence; positions continue it) the new keys and values are written behind the cached ones and
// queries see all of them; num_tokens is left to the caller.
[[nodiscard]] absl::Status SideAttentionForward(const OpContext& ctx, const SideNetworkConfig& config,
                                                const SideAttentionTensors& values, const SideSequences& sequences,
                                                const ConstMatrixView& normed, const ConstMatrixView& x,
                                                const SideKvCache* cache, const SideAttentionActivations& activations,
                                                const MatrixView& y);
// Sets grad_normed from grad_y; adds to `gradients`.
[[nodiscard]] absl::Status SideAttentionBackward(const OpContext& ctx, const SideNetworkConfig& config,
                                                 const SideAttentionTensors& values,
                                                 const SideAttentionTensors& gradients, const SideSequences& sequences,
                                                 const SideAttentionActivations& activations,
                                                 const ConstMatrixView& normed, const ConstMatrixView& grad_y,
                                                 const MatrixView& grad_normed, Arena* arena);

// Floats that the activations take for each token, and what backward takes on top.
std::int64_t SideAttentionFloatsPerToken(const SideNetworkConfig& config);
std::int64_t SideAttentionBackwardFloatsPerToken(const SideNetworkConfig& config);

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_ATTENTION_H_
