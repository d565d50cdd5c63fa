// From the last states to predictions, and back:
//   h      = alpha P norm(h_f[N]) + (1 - alpha) up(norm_g(h_g[N]))
//   logits = W h
// P projects to the width e of the embedding where that differs from d (OPT-350M; there h_f[N] is not normed, neither
// is h_g[N]). With mix_weighs_side alpha and 1 - alpha change places. W is the backbone's own LM head (frozen) or
// trainable: a classifier, or a row for regression. Only rows with a target are computed, in chunks (HeadChunkRows), so
// that the logits of a large vocabulary never lie in memory all at once. All memory is the device's.
#ifndef QST_WORKER_SIDE_HEAD_H_
#define QST_WORKER_SIDE_HEAD_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/tensor.h"
#include "worker/side/arena.h"
#include "worker/side/downsample.h"
#include "worker/side/norm.h"
#include "worker/side/parameters.h"
#include "worker/side/side_config.h"

namespace qst {

// The backbone's last norm and LM head; borrowed, never changed.
struct FrozenHead {
  NormKind norm = NormKind::kRms;
  ConstMatrixView final_norm;       // [1, d] f32; empty if the norm has no weight
  ConstMatrixView final_norm_bias;  // [1, d] f32; empty but for LayerNorm with weight
  float norm_eps = 1e-5f;
  WeightView projection;  // [e, d], any type; empty if e is d
  WeightView lm_head;     // [V, e], any dtype; empty for classification and regression
};
// kInvalidArgument: the head does not fit the configuration.
absl::Status CheckFrozenHead(const SideNetworkConfig& config, const FrozenHead& frozen);
// What the backbone itself gives its LM head: out [num, e] = P norm(states), states [num, d] f32, which are
// overwritten.
[[nodiscard]] absl::Status BackboneOutput(const OpContext& ctx, const FrozenHead& frozen, const MatrixView& states,
                                          const MatrixView& out);

// Parameters of the head, or their gradients; views that a configuration has no use for are empty.
struct HeadTensors {
  NormTensors norm;          // [1, ds]
  MatrixView upsample;       // [e, ds]
  MatrixView upsample_bias;  // [1, e]
  MatrixView mix;            // [1, 1] or [1, e]
  MatrixView score;          // [C, e]; [1, e] for regression
};
HeadTensors FindHeadTensors(const SideNetworkConfig& config, TensorSet set, Parameters* parameters);

// What to predict: row rows[i] has target targets[i] (a token or a class), or values[i] for regression. Rows ascend.
struct PredictionTargets {
  const std::int32_t* rows = nullptr;
  const std::int32_t* targets = nullptr;  // null for regression
  const float* values = nullptr;          // null for all else
  std::int64_t num = 0;
};

// Where the head writes, num targets each; enqueued like everything else.
struct HeadOutputs {
  float* losses = nullptr;            // -log p(target); of regression the squared error
  std::int32_t* predicted = nullptr;  // most probable token or class; 0 for regression
  MatrixView logits;                  // [num, C], or [num, 1] for regression, without gradients only; else empty
};

struct HeadArgs {
  ConstMatrixView backbone_last;  // h_f[N] [T, d]
  ConstMatrixView side_last;      // h_g[N] [T, ds]; empty for a probe
  PredictionTargets targets;
  // With gradients: those of grad_scale * (sum of losses) are added to `gradients`, and grad_side_last [T, ds] is
  // set (zero in rows without a target). Without: both unused.
  bool want_grad = false;
  float grad_scale = 1.0f;
  MatrixView grad_side_last;
};

[[nodiscard]] absl::Status RunHead(const OpContext& ctx, const SideNetworkConfig& config, const FrozenHead& frozen,
                                   const HeadTensors& values, const HeadTensors& gradients, const HeadArgs& args,
                                   Arena* arena, const HeadOutputs& outputs);

// The state that the head's matrix is applied to, for the given rows: out [num, e]. Generation and inspection.
[[nodiscard]] absl::Status MixedState(const OpContext& ctx, const SideNetworkConfig& config, const FrozenHead& frozen,
                                      const HeadTensors& values, const ConstMatrixView& backbone_last,
                                      const ConstMatrixView& side_last, const std::int32_t* rows, std::int64_t num,
                                      Arena* arena, const MatrixView& out);

// V, or the number of classes, or 1.
std::int64_t NumOutputs(const SideNetworkConfig& config);
// Rows of one chunk: what 64 MiB of logits hold on CPU, at most 512; 256 MiB on CUDA, at most 4096, because few rows
// leave most of a GPU idle; at least 16. Gradients of weights are sums over chunks, so it is part of what decides
// their last bits.
std::int64_t HeadChunkRows(const SideNetworkConfig& config, DeviceType device);
// Floats that a chunk takes from the arena.
std::int64_t HeadFloats(const SideNetworkConfig& config, DeviceType device, std::int64_t num_rows);

}  // namespace qst

#endif  // QST_WORKER_SIDE_HEAD_H_
