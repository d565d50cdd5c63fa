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

// One row of d values, in two instruction sets. Null pointers as above.
#define QST_NORM_ROW_KERNELS                                                                                        \
  /* Returns 1 / sqrt(mean(x^2) + eps). y may be x. */                                                              \
  float RmsNormRow(const float* x, const float* weight, std::int64_t d, float eps, float* y);                       \
  void RmsNormBackwardRow(const float* grad_y, const float* x, const float* weight, float inv_rms, std::int64_t d, \
                          bool accumulate, float* grad_x, float* grad_weight);                                      \
  /* Stores the row's mean and 1 / sqrt(var + eps). y may be x. */                                                  \
  void LayerNormRow(const float* x, const float* weight, const float* bias, std::int64_t d, float eps, float* y,    \
                    float* mean, float* inv_std);                                                                   \
  void LayerNormBackwardRow(const float* grad_y, const float* x, const float* weight, float mean, float inv_std,    \
                            std::int64_t d, bool accumulate, float* grad_x, float* grad_weight, float* grad_bias);

namespace portable {
QST_NORM_ROW_KERNELS
}  // namespace portable
namespace avx2 {
QST_NORM_ROW_KERNELS
}  // namespace avx2
#undef QST_NORM_ROW_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_NORM_H_
