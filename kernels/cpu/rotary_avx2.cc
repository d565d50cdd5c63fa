#include "kernels/cpu/rotary_kernels.h"

#include <immintrin.h>

#include "kernels/cpu/vec_math_avx2.h"

namespace qst {
namespace cpu {
namespace avx2 {

void RotateHead(const float* cos, const float* sin, std::int64_t half, float* a, float* b) {
  ForVectors(half, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
    const __m256 c = Load(cos + j, mask);
    const __m256 s = Load(sin + j, mask);
    const __m256 first = Load(a + j, mask);
    const __m256 second = Load(b + j, mask);
    _mm256_maskstore_ps(a + j, mask, _mm256_fmsub_ps(first, c, _mm256_mul_ps(second, s)));
    _mm256_maskstore_ps(b + j, mask, _mm256_fmadd_ps(second, c, _mm256_mul_ps(first, s)));
  });
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
