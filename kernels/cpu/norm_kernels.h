// Norm kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_NORM_KERNELS_H_
#define QST_KERNELS_CPU_NORM_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

// One row of d values, in two instruction sets. The weight and bias of LayerNormRow (both) and the weight of its
// backward may be null: no affine part. grad_weight and grad_bias may be null: not wanted; else they are added to.
#define QST_NORM_ROW_KERNELS                                                                                       \
  /* Returns 1 / sqrt(mean(x^2) + eps). y may be x. */                                                             \
  float RmsNormRow(const float* x, const float* weight, std::int64_t d, float eps, float* y);                      \
  void RmsNormBackwardRow(const float* grad_y, const float* x, const float* weight, float inv_rms, std::int64_t d, \
                          bool accumulate, float* grad_x, float* grad_weight);                                     \
  /* Stores the row's mean and 1 / sqrt(var + eps). y may be x. */                                                 \
  void LayerNormRow(const float* x, const float* weight, const float* bias, std::int64_t d, float eps, float* y,   \
                    float* mean, float* inv_std);                                                                  \
  void LayerNormBackwardRow(const float* grad_y, const float* x, const float* weight, float mean, float inv_std,   \
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

#endif  // QST_KERNELS_CPU_NORM_KERNELS_H_
