// RMS norm and layer norm on CPU. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_NORM_H_
#define QST_KERNELS_CPU_NORM_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

void RmsNorm(const Exec& exec, const ConstMatrixView& x, const float* weight, float eps, const MatrixView& y,
             float* inv_rms);
// grad_weight [d] may be null.
void RmsNormBackward(const Exec& exec, const ConstMatrixView& grad_y, const ConstMatrixView& x, const float* weight,
                     const float* inv_rms, const MatrixView& grad_x, float* grad_weight, bool accumulate);

// weight and bias [d], both null without an affine part.
void LayerNorm(const Exec& exec, const ConstMatrixView& x, const float* weight, const float* bias, float eps,
               const MatrixView& y, float* mean, float* inv_std);
// weight, grad_weight, grad_bias [d] may be null.
void LayerNormBackward(const Exec& exec, const ConstMatrixView& grad_y, const ConstMatrixView& x, const float* weight,
                       const float* mean, const float* inv_std, const MatrixView& grad_x, float* grad_weight,
                       float* grad_bias, bool accumulate);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_NORM_H_
