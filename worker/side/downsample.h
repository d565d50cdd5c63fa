// Downsample modules: from a hidden state of the backbone to the side network's width.
//
//   adapter   out = B silu(A h)         A [rank, d], B [ds, rank]
//   lora      out = B A h
//   linear    out = A h                 A [ds, d]
//   pooling   out = max or mean of neighbouring channels
// and, with a norm, out = LayerNorm(out) * weight + bias, eps 1e-5.
//
// The input is frozen: backward yields gradients of the parameters only.
#ifndef QST_WORKER_SIDE_DOWNSAMPLE_H_
#define QST_WORKER_SIDE_DOWNSAMPLE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/tensor.h"
#include "worker/side/arena.h"
#include "worker/side/parameters.h"
#include "worker/side/side_config.h"

namespace qst {

// Parameters of one module, or their gradients. Views that a kind has no use for are empty.
struct DownsampleTensors {
  MatrixView a;
  MatrixView b;
  MatrixView norm_weight;  // [1, ds]
  MatrixView norm_bias;    // [1, ds]
};
enum class TensorSet : std::uint8_t { kValues, kGradients };
DownsampleTensors FindDownsampleTensors(const SideNetworkConfig& config, std::int64_t module, TensorSet set,
                                        Parameters* parameters);

// What forward leaves for backward, in the arena (input: where the caller has it).
struct DownsampleActivations {
  ConstMatrixView input;   // [T, d] f32, f16 or bf16
  MatrixView inner;        // [T, rank], before the activation; adapter and lora; backward overwrites it
  MatrixView before_norm;  // [T, ds], if there is a norm
  float* mean = nullptr;   // [T], if there is a norm
  float* inv_std = nullptr;
  MatrixView out;  // [T, ds]
};

[[nodiscard]] absl::Status DownsampleForward(const OpContext& ctx, const SideNetworkConfig& config,
                                             const DownsampleTensors& values, const ConstMatrixView& input,
                                             Arena* arena, DownsampleActivations* activations);

// The same in three parts, of which only the second knows where the input lies:
// memory for num_rows >= T tokens,
[[nodiscard]] absl::Status AllocateDownsample(const SideNetworkConfig& config, std::int64_t num_rows, Arena* arena,
                                              DownsampleActivations* activations);
// the first op, which reads the input [T, d]; in its result rows beyond T are zeros,
[[nodiscard]] absl::Status DownsampleInput(const OpContext& ctx, const SideNetworkConfig& config,
                                           const DownsampleTensors& values, const ConstMatrixView& input,
                                           DownsampleActivations* activations);
// and all that follows, on num_rows rows.
[[nodiscard]] absl::Status DownsampleRest(const OpContext& ctx, const SideNetworkConfig& config,
                                          const DownsampleTensors& values, const DownsampleActivations& activations,
                                          Arena* arena);

// Backward in two parts. First all but the gradient of the matrix that reads the input: adds to `gradients`, and leaves
// the gradient of that matrix's product where GradOfProduct says. grad_out and room [num_rows, ds]; grad_out stays as
// it is.
[[nodiscard]] absl::Status DownsampleBackward(const OpContext& ctx, const SideNetworkConfig& config,
                                              const DownsampleTensors& values, const DownsampleTensors& gradients,
                                              const DownsampleActivations& activations, const ConstMatrixView& grad_out,
                                              const MatrixView& room, Arena* arena);
// activations.inner, room, or grad_out itself; empty for kinds that have no such matrix.
ConstMatrixView GradOfProduct(const SideNetworkConfig& config, const DownsampleActivations& activations,
                              const ConstMatrixView& grad_out, const ConstMatrixView& room);
// Then that gradient, from the rows that the input has.
[[nodiscard]] absl::Status DownsampleBackwardInput(const OpContext& ctx, const DownsampleTensors& gradients,
                                                   const ConstMatrixView& input, const ConstMatrixView& grad_product);

// Floats that forward takes from the arena for each token.
std::int64_t DownsampleFloatsPerToken(const SideNetworkConfig& config);
// The most that backward takes at once for each token, `room` not counted.
std::int64_t DownsampleBackwardFloatsPerToken(const SideNetworkConfig& config);

}  // namespace qst

#endif  // QST_WORKER_SIDE_DOWNSAMPLE_H_
