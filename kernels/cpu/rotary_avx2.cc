#include <immintrin.h>

#include "kernels/cpu/rotary_kernels.h"
#include "kernels/cpu/vec_math_avx2.h"

namespace qst {
namespace cpu {
namespace avx2 {
namespace {

// cos and sin of four angles below 2^30 in size: x = n pi / 2 + r, Taylor series of r in [-pi / 4, pi / 4]
// (off by 2e-14 at most, far below float32's rounding), and the quadrant n mod 4.
void CosSin4(__m256d x, __m256d* cos, __m256d* sin) {
  const __m256d n = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(0.63661977236758134308)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // pi / 2 in two parts; the first product is exact inside the fused operation.
  __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(1.5707963267948966), x);
  r = _mm256_fnmadd_pd(n, _mm256_set1_pd(6.123233995736766e-17), r);
  const __m256d r2 = _mm256_mul_pd(r, r);
  __m256d s = _mm256_set1_pd(1.0 / 6227020800.0);
  s = _mm256_fmadd_pd(s, r2, _mm256_set1_pd(-1.0 / 39916800.0));
  s = _mm256_fmadd_pd(s, r2, _mm256_set1_pd(1.0 / 362880.0));
  s = _mm256_fmadd_pd(s, r2, _mm256_set1_pd(-1.0 / 5040.0));
  s = _mm256_fmadd_pd(s, r2, _mm256_set1_pd(1.0 / 120.0));
  s = _mm256_fmadd_pd(s, r2, _mm256_set1_pd(-1.0 / 6.0));
  s = _mm256_fmadd_pd(_mm256_mul_pd(s, r2), r, r);
  __m256d c = _mm256_set1_pd(-1.0 / 87178291200.0);
  c = _mm256_fmadd_pd(c, r2, _mm256_set1_pd(1.0 / 479001600.0));
  c = _mm256_fmadd_pd(c, r2, _mm256_set1_pd(-1.0 / 3628800.0));
  c = _mm256_fmadd_pd(c, r2, _mm256_set1_pd(1.0 / 40320.0));
  c = _mm256_fmadd_pd(c, r2, _mm256_set1_pd(-1.0 / 720.0));
  c = _mm256_fmadd_pd(c, r2, _mm256_set1_pd(1.0 / 24.0));
  c = _mm256_fmadd_pd(c, r2, _mm256_set1_pd(-0.5));
  c = _mm256_fmadd_pd(c, r2, _mm256_set1_pd(1.0));
  // Quadrant 1 is (-s, c), 2 is (-c, -s), 3 is (s, -c): odd ones swap, and signs come from two bits.
  const __m256i quadrant = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
  const __m256d is_odd = _mm256_castsi256_pd(_mm256_slli_epi64(quadrant, 63));
  const __m256i next = _mm256_add_epi64(quadrant, _mm256_set1_epi64x(1));
  const __m256d sign = _mm256_set1_pd(-0.0);
  const __m256d cos_sign = _mm256_and_pd(_mm256_castsi256_pd(_mm256_slli_epi64(next, 62)), sign);
  const __m256d sin_sign = _mm256_and_pd(_mm256_castsi256_pd(_mm256_slli_epi64(quadrant, 62)), sign);
  *cos = _mm256_xor_pd(_mm256_blendv_pd(c, s, is_odd), cos_sign);
  *sin = _mm256_xor_pd(_mm256_blendv_pd(s, c, is_odd), sin_sign);
}

}  // namespace

void CosSin(std::int32_t position, const float* inv_freq, std::int64_t half, bool inverse, float* cos, float* sin) {
  const __m256d where = _mm256_set1_pd(static_cast<double>(position));
  const __m128 flip = _mm_set1_ps(inverse ? -0.0f : 0.0f);
  const __m256d limit = _mm256_set1_pd(1073741824.0);
  for (std::int64_t j = 0; j < half; j += 4) {
    const __m128i mask = _mm256_castsi256_si128(LaneMask(half - j < 4 ? half - j : 4));
    const __m256d x = _mm256_mul_pd(where, _mm256_cvtps_pd(_mm_maskload_ps(inv_freq + j, mask)));
    const __m256d size = _mm256_andnot_pd(_mm256_set1_pd(-0.0), x);
    __m256d c;
    __m256d s;
    if (_mm256_movemask_pd(_mm256_cmp_pd(size, limit, _CMP_LT_OQ)) == 0xf) {
      CosSin4(x, &c, &s);
    } else {
      alignas(32) double angles[4];
      alignas(32) double cosines[4];
      alignas(32) double sines[4];
      _mm256_store_pd(angles, x);
      for (int i = 0; i < 4; ++i) {
        cosines[i] = __builtin_cos(angles[i]);
        sines[i] = __builtin_sin(angles[i]);
      }
      c = _mm256_load_pd(cosines);
      s = _mm256_load_pd(sines);
    }
    _mm_maskstore_ps(cos + j, mask, _mm256_cvtpd_ps(c));
    _mm_maskstore_ps(sin + j, mask, _mm_xor_ps(_mm256_cvtpd_ps(s), flip));
  }
}

void RotateHead(const float* cos, const float* sin, std::int64_t half, float* a, float* b) {
  std::int64_t j = 0;
  for (; j + 8 <= half; j += 8) {
    const __m256 c = _mm256_loadu_ps(cos + j);
    const __m256 s = _mm256_loadu_ps(sin + j);
    const __m256 first = _mm256_loadu_ps(a + j);
    const __m256 second = _mm256_loadu_ps(b + j);
    _mm256_storeu_ps(a + j, _mm256_fmsub_ps(first, c, _mm256_mul_ps(second, s)));
    _mm256_storeu_ps(b + j, _mm256_fmadd_ps(second, c, _mm256_mul_ps(first, s)));
  }
  // One by one: masked loads next to masked stores of the neighbouring head would wait for them.
  for (; j < half; ++j) {
    const float first = a[j];
    const float second = b[j];
    a[j] = __builtin_fmaf(first, cos[j], -(second * sin[j]));
    b[j] = __builtin_fmaf(second, cos[j], first * sin[j]);
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
