#include <immintrin.h>

#include "kernels/cpu/elementwise_kernels.h"
#include "kernels/cpu/vec_math_avx2.h"

namespace qst {
namespace cpu {
namespace avx2 {
namespace {

// s (1 + x (1 - s)), the slope of silu at x with s = sigmoid(x).
inline __m256 SiluSlope(__m256 x, __m256 s) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_mul_ps(s, _mm256_fmadd_ps(x, _mm256_sub_ps(one, s), one));
}

}  // namespace

void ReluRow(const float* x, std::int64_t n, float* y) {
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        // A NaN passes as the second operand of max.
        _mm256_maskstore_ps(y + j, mask, _mm256_max_ps(_mm256_setzero_ps(), Load(x + j, mask)));
      });
}

void SiluRow(const float* x, std::int64_t n, float* y) {
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 v = Load(x + j, mask);
        _mm256_maskstore_ps(y + j, mask, _mm256_mul_ps(v, Sigmoid(v)));
      });
}

void ReluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x) {
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 is_positive = _mm256_cmp_ps(Load(x + j, mask), _mm256_setzero_ps(), _CMP_GT_OQ);
        _mm256_maskstore_ps(grad_x + j, mask, _mm256_and_ps(is_positive, Load(grad_y + j, mask)));
      });
}

void SiluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x) {
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 v = Load(x + j, mask);
        _mm256_maskstore_ps(grad_x + j, mask, _mm256_mul_ps(Load(grad_y + j, mask), SiluSlope(v, Sigmoid(v))));
      });
}

void SwiGluRow(const float* gate, const float* up, std::int64_t n, float* y) {
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 g = Load(gate + j, mask);
        const __m256 silu = _mm256_mul_ps(g, Sigmoid(g));
        _mm256_maskstore_ps(y + j, mask, _mm256_mul_ps(silu, Load(up + j, mask)));
      });
}

void SwiGluBackwardRow(const float* grad_y, const float* gate, const float* up, std::int64_t n, float* grad_gate,
                       float* grad_up) {
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 g = Load(gate + j, mask);
        const __m256 u = Load(up + j, mask);
        const __m256 gy = Load(grad_y + j, mask);
        const __m256 s = Sigmoid(g);
        _mm256_maskstore_ps(grad_gate + j, mask, _mm256_mul_ps(_mm256_mul_ps(gy, u), SiluSlope(g, s)));
        _mm256_maskstore_ps(grad_up + j, mask, _mm256_mul_ps(gy, _mm256_mul_ps(g, s)));
      });
}

void GateMixRow(const float* a, const float* b, const float* mix, std::int64_t n, float* out) {
  const __m256 one = _mm256_set1_ps(1.0f);
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 m = Load(mix + j, mask);
        const __m256 from_b = _mm256_mul_ps(m, Load(b + j, mask));
        _mm256_maskstore_ps(out + j, mask, _mm256_fmadd_ps(_mm256_sub_ps(one, m), Load(a + j, mask), from_b));
      });
}

void GateMixBackwardRow(const float* grad_out, const float* a, const float* b, const float* mix, std::int64_t n,
                        float* grad_a, float* grad_b, float* mix_sum) {
  const __m256 one = _mm256_set1_ps(1.0f);
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 g = Load(grad_out + j, mask);
        const __m256 m = Load(mix + j, mask);
        if (mix_sum != nullptr) {
          const __m256 difference = _mm256_sub_ps(Load(b + j, mask), Load(a + j, mask));
          _mm256_maskstore_ps(mix_sum + j, mask, _mm256_fmadd_ps(g, difference, Load(mix_sum + j, mask)));
        }
        if (grad_b != nullptr) _mm256_maskstore_ps(grad_b + j, mask, _mm256_mul_ps(m, g));
        if (grad_a != nullptr) _mm256_maskstore_ps(grad_a + j, mask, _mm256_mul_ps(_mm256_sub_ps(one, m), g));
      });
}

void AddRow(const float* x, std::int64_t n, float* y) {
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        _mm256_maskstore_ps(y + j, mask, _mm256_add_ps(Load(y + j, mask), Load(x + j, mask)));
      });
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
