// Elementwise kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_ELEMENTWISE_KERNELS_H_
#define QST_KERNELS_CPU_ELEMENTWISE_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

// n consecutive elements, in two instruction sets. Outputs may be any of the inputs of the same call.
#define QST_ELEMENTWISE_ROW_KERNELS                                                                                 \
  void ReluRow(const float* x, std::int64_t n, float* y);                                                           \
  void SiluRow(const float* x, std::int64_t n, float* y);                                                           \
  void ReluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x);                         \
  void SiluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x);                         \
  void SwiGluRow(const float* gate, const float* up, std::int64_t n, float* y);                                     \
  void SwiGluBackwardRow(const float* grad_y, const float* gate, const float* up, std::int64_t n, float* grad_gate, \
                         float* grad_up);                                                                           \
  void GateMixRow(const float* a, const float* b, const float* mix, std::int64_t n, float* out);                    \
  /* grad_a, grad_b and mix_sum (+= grad_out * (b - a)) may be null; a and b may be if mix_sum is. */               \
  void GateMixBackwardRow(const float* grad_out, const float* a, const float* b, const float* mix, std::int64_t n,  \
                          float* grad_a, float* grad_b, float* mix_sum);                                            \
  void AddRow(const float* x, std::int64_t n, float* y); /* y += x */

namespace portable {
QST_ELEMENTWISE_ROW_KERNELS
}  // namespace portable
namespace avx2 {
QST_ELEMENTWISE_ROW_KERNELS
}  // namespace avx2
#undef QST_ELEMENTWISE_ROW_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ELEMENTWISE_KERNELS_H_
