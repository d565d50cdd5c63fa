// RMS norm and layer norm on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_NORM_H_
#define QST_KERNELS_CUDA_NORM_H_

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// x and y f32, bf16 or f16 each.
absl::Status RmsNorm(Stream& stream, const ConstMatrixView& x, const float* weight, float eps, const MatrixView& y,
                     float* inv_rms);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_NORM_H_
