// Rotary kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_ROTARY_KERNELS_H_
#define QST_KERNELS_CPU_ROTARY_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

// One head: (a[j], b[j]) becomes (a cos - b sin, b cos + a sin) for j in [0, half).
namespace portable {
void RotateHead(const float* cos, const float* sin, std::int64_t half, float* a, float* b);
}  // namespace portable
namespace avx2 {
void RotateHead(const float* cos, const float* sin, std::int64_t half, float* a, float* b);
}  // namespace avx2

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ROTARY_KERNELS_H_
