// Gradients of a linear layer's weight and bias: sums over tokens, in one order. For .cu files.
#ifndef QST_KERNELS_CUDA_GEMM_GRAD_WEIGHT_CUH_
#define QST_KERNELS_CUDA_GEMM_GRAD_WEIGHT_CUH_

#include "absl/status/status.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// grad_w[n, k] (+)= grad_y[T, n]^T x[T, k], not empty, in float32 (or TF32): chunks of kGradChunkRows tokens are
// products of one batch, so that the narrow matrices of a side network keep a GPU busy, and are added in order. x of a
// half type is converted up chunk by chunk.
absl::Status GradOfWeight(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                          const MatrixView& grad_w, bool accumulate);

// grad_bias[1, n] (+)= sum over tokens of grad_y[T, n].
absl::Status GradOfBias(Stream& stream, const ConstMatrixView& grad_y, const MatrixView& grad_bias, bool accumulate);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_GRAD_WEIGHT_CUH_
