#include <immintrin.h>

#include "kernels/cpu/optimizer_kernels.h"
#include "kernels/cpu/vec_math_avx2.h"

namespace qst {
namespace cpu {
namespace avx2 {

void AdamWRange(const AdamWFactors& f, std::int64_t n, float* param, const float* grad, float* exp_avg,
                float* exp_avg_sq) {
  const __m256 learning_rate = _mm256_set1_ps(f.learning_rate);
  const __m256 beta1 = _mm256_set1_ps(f.beta1);
  const __m256 one_minus_beta1 = _mm256_set1_ps(f.one_minus_beta1);
  const __m256 beta2 = _mm256_set1_ps(f.beta2);
  const __m256 one_minus_beta2 = _mm256_set1_ps(f.one_minus_beta2);
  const __m256 epsilon = _mm256_set1_ps(f.epsilon);
  const __m256 weight_decay = _mm256_set1_ps(f.weight_decay);
  const __m256 grad_scale = _mm256_set1_ps(f.grad_scale);
  const __m256 correction1 = _mm256_set1_ps(f.correction1);
  const __m256 correction2 = _mm256_set1_ps(f.correction2);
  ForVectors(
      n, [&](std::int64_t i, __m256i mask) __attribute__((always_inline)) {
        const __m256 g = _mm256_mul_ps(Load(grad + i, mask), grad_scale);
        const __m256 m = _mm256_fmadd_ps(beta1, Load(exp_avg + i, mask), _mm256_mul_ps(one_minus_beta1, g));
        const __m256 g2 = _mm256_mul_ps(one_minus_beta2, _mm256_mul_ps(g, g));
        const __m256 v = _mm256_fmadd_ps(beta2, Load(exp_avg_sq + i, mask), g2);
        const __m256 p = Load(param + i, mask);
        const __m256 root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_mul_ps(v, correction2)), epsilon);
        // Lanes beyond a tail may divide 0 by 0; they are not stored.
        const __m256 step = _mm256_div_ps(_mm256_mul_ps(m, correction1), root);
        const __m256 change = _mm256_fmadd_ps(weight_decay, p, step);
        _mm256_maskstore_ps(exp_avg + i, mask, m);
        _mm256_maskstore_ps(exp_avg_sq + i, mask, v);
        _mm256_maskstore_ps(param + i, mask, _mm256_fnmadd_ps(learning_rate, change, p));
      });
}

double SumOfSquaresRange(const float* x, std::int64_t n) {
  __m256d sum0 = _mm256_setzero_pd();
  __m256d sum1 = _mm256_setzero_pd();
  ForVectors(
      n, [&](std::int64_t i, __m256i mask) __attribute__((always_inline)) {
        const __m256 v = Load(x + i, mask);
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
        sum0 = _mm256_fmadd_pd(low, low, sum0);
        sum1 = _mm256_fmadd_pd(high, high, sum1);
      });
  alignas(32) double lanes[4];
  _mm256_store_pd(lanes, _mm256_add_pd(sum0, sum1));
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
