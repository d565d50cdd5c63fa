// Rotary kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_ROTARY_KERNELS_H_
#define QST_KERNELS_CPU_ROTARY_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

// cos[j] and sin[j] of the angle position * inv_freq[j] (float64), rounded to float32; sin negated if
// `inverse`. j in [0, half).
// RotateHead: (a[j], b[j]) becomes (a cos - b sin, b cos + a sin).
#define QST_ROTARY_KERNELS                                                                                            \
  void CosSin(std::int32_t position, const float* inv_freq, std::int64_t half, bool inverse, float* cos, float* sin); \
  void RotateHead(const float* cos, const float* sin, std::int64_t half, float* a, float* b);

namespace portable {
QST_ROTARY_KERNELS
}  // namespace portable
namespace avx2 {
QST_ROTARY_KERNELS
}  // namespace avx2
#undef QST_ROTARY_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ROTARY_KERNELS_H_
