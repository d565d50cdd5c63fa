// RMS norm and layer norm on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_NORM_H_
#define QST_KERNELS_CUDA_NORM_H_

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// x and y f32, bf16 or f16 each. Pointers that ops.h allows to be empty are null then.
absl::Status RmsNorm(Stream& stream, const ConstMatrixView& x, const float* weight, float eps, const MatrixView& y,
                     float* inv_rms);
absl::Status LayerNorm(Stream& stream, const ConstMatrixView& x, const float* weight, const float* bias, float eps,
                       const MatrixView& y, float* mean, float* inv_std);

// x f32, bf16 or f16; gradients f32.
absl::Status RmsNormBackward(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                             const float* weight, const float* inv_rms, const MatrixView& grad_x, float* grad_weight,
                             bool accumulate);
absl::Status LayerNormBackward(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                               const float* weight, const float* mean, const float* inv_std, const MatrixView& grad_x,
                               float* grad_weight, float* grad_bias, bool accumulate);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_NORM_H_
