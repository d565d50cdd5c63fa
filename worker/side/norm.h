// The norms of backbones and side networks behind one interface:
//   rms     y = x / sqrt(mean(x^2) + eps) * weight
//   layer   y = (x - mean) / sqrt(var + eps) * weight + bias; without weight and bias, if both are empty
#ifndef QST_WORKER_SIDE_NORM_H_
#define QST_WORKER_SIDE_NORM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/tensor.h"
#include "worker/side/arena.h"
#include "worker/side/side_config.h"

namespace qst {

// [1, width] each, as far as the kind has them.
struct NormTensors {
  MatrixView weight;
  MatrixView bias;
};

// What forward leaves for backward.
struct NormStatistics {
  float* mean = nullptr;     // [T], kLayer
  float* inverse = nullptr;  // [T], of the root
};
absl::StatusOr<NormStatistics> AllocateNormStatistics(NormKind kind, std::int64_t num_tokens, Arena* arena);
// Floats that it takes for each token.
std::int64_t NormFloatsPerToken(NormKind kind);

// y may be x. The statistics may be those of no allocation: then none are left. kNone copies.
[[nodiscard]] absl::Status NormForward(const OpContext& ctx, NormKind kind, const ConstMatrixView& x,
                                       const ConstMatrixView& weight, const ConstMatrixView& bias, float eps,
                                       const MatrixView& y, const NormStatistics& statistics);
// Adds to `gradients`; grad_x is set, or added to. Not for kNone.
[[nodiscard]] absl::Status NormBackward(const OpContext& ctx, NormKind kind, const ConstMatrixView& grad_y,
                                        const ConstMatrixView& x, const NormTensors& values,
                                        const NormStatistics& statistics, const MatrixView& grad_x,
                                        const NormTensors& gradients, bool accumulate);

}  // namespace qst

#endif  // QST_WORKER_SIDE_NORM_H_
