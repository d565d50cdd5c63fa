// The linear ops of kernels/ops.h on the CPU. Arguments are already checked; empty shapes are allowed.
#ifndef QST_KERNELS_CPU_GEMM_LINEAR_H_
#define QST_KERNELS_CPU_GEMM_LINEAR_H_

#include "kernels/cpu/gemm/kernels.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

// y[T, n] (+)= x[T, k] W[n, k]^T + bias[n].
void Linear(ThreadPool* threads, const GemmKernels& kernels, const ConstMatrixView& x, const WeightView& w,
            const ConstMatrixView& bias, const MatrixView& y, bool accumulate);

// grad_x[T, k] (+)= grad_y[T, n] W[n, k].
void LinearBackwardInput(ThreadPool* threads, const GemmKernels& kernels, const ConstMatrixView& grad_y,
                         const WeightView& w, const MatrixView& grad_x, bool accumulate);

// grad_w[n, k] (+)= grad_y[T, n]^T x[T, k]; grad_bias[1, n] (+)= sum over T of grad_y, if not empty.
void LinearBackwardWeight(ThreadPool* threads, const GemmKernels& kernels, const ConstMatrixView& grad_y,
                          const ConstMatrixView& x, const MatrixView& grad_w, const MatrixView& grad_bias,
                          bool accumulate);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_GEMM_LINEAR_H_
