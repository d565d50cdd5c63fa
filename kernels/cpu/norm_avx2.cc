#include <immintrin.h>

#include "kernels/cpu/norm_kernels.h"
#include "kernels/cpu/vec_math_avx2.h"

namespace qst {
namespace cpu {
namespace avx2 {
namespace {

// Sums over a row run in two accumulators of eight lanes (columns j mod 16), then over lanes. A tail counts
// as zeros beyond d, so a column's place in the order depends on d alone.
float RootInverse(float sum, std::int64_t d, float eps) {
  return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(_mm_set_ss(sum / static_cast<float>(d) + eps))));
}

}  // namespace

float RmsNormRow(const float* x, const float* weight, std::int64_t d, float eps, float* y) {
  __m256 sum0 = _mm256_setzero_ps();
  __m256 sum1 = _mm256_setzero_ps();
  std::int64_t j = 0;
  for (; j + 16 <= d; j += 16) {
    const __m256 a = _mm256_loadu_ps(x + j);
    const __m256 b = _mm256_loadu_ps(x + j + 8);
    sum0 = _mm256_fmadd_ps(a, a, sum0);
    sum1 = _mm256_fmadd_ps(b, b, sum1);
  }
  if (j < d) {
    const __m256 a = Load(x + j, LaneMask(d - j));
    sum0 = _mm256_fmadd_ps(a, a, sum0);
  }
  if (j + 8 < d) {
    const __m256 b = Load(x + j + 8, LaneMask(d - j - 8));
    sum1 = _mm256_fmadd_ps(b, b, sum1);
  }
  const float inv = RootInverse(SumLanes(_mm256_add_ps(sum0, sum1)), d, eps);
  const __m256 scale = _mm256_set1_ps(inv);
  for (j = 0; j + 8 <= d; j += 8) {
    const __m256 normed = _mm256_mul_ps(_mm256_loadu_ps(x + j), scale);
    _mm256_storeu_ps(y + j, _mm256_mul_ps(normed, _mm256_loadu_ps(weight + j)));
  }
  if (j < d) {
    const __m256i mask = LaneMask(d - j);
    const __m256 normed = _mm256_mul_ps(Load(x + j, mask), scale);
    _mm256_maskstore_ps(y + j, mask, _mm256_mul_ps(normed, Load(weight + j, mask)));
  }
  return inv;
}

void RmsNormBackwardRow(const float* grad_y, const float* x, const float* weight, float inv_rms, std::int64_t d,
                        bool accumulate, float* grad_x, float* grad_weight) {
  __m256 dot = _mm256_setzero_ps();
  ForVectors(
      d, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 g = _mm256_mul_ps(Load(grad_y + j, mask), Load(weight + j, mask));
        dot = _mm256_fmadd_ps(g, Load(x + j, mask), dot);
      });
  const __m256 scale = _mm256_set1_ps(SumLanes(dot) * inv_rms * inv_rms / static_cast<float>(d));
  const __m256 inv = _mm256_set1_ps(inv_rms);
  ForVectors(
      d, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 gy = Load(grad_y + j, mask);
        const __m256 xs = Load(x + j, mask);
        const __m256 g = _mm256_mul_ps(gy, Load(weight + j, mask));
        __m256 grad = _mm256_mul_ps(inv, _mm256_fnmadd_ps(xs, scale, g));
        if (accumulate) grad = _mm256_add_ps(Load(grad_x + j, mask), grad);
        _mm256_maskstore_ps(grad_x + j, mask, grad);
        if (grad_weight != nullptr) {
          const __m256 sum = _mm256_fmadd_ps(gy, _mm256_mul_ps(xs, inv), Load(grad_weight + j, mask));
          _mm256_maskstore_ps(grad_weight + j, mask, sum);
        }
      });
}

void LayerNormRow(const float* x, const float* weight, const float* bias, std::int64_t d, float eps, float* y,
                  float* mean, float* inv_std) {
  __m256 sum = _mm256_setzero_ps();
  ForVectors(
      d, [&](std::int64_t j, __m256i mask)
             __attribute__((always_inline)) { sum = _mm256_add_ps(sum, Load(x + j, mask)); });
  *mean = SumLanes(sum) / static_cast<float>(d);
  const __m256 m = _mm256_set1_ps(*mean);
  __m256 squares = _mm256_setzero_ps();
  ForVectors(
      d, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 centred = _mm256_and_ps(_mm256_sub_ps(Load(x + j, mask), m), _mm256_castsi256_ps(mask));
        squares = _mm256_fmadd_ps(centred, centred, squares);
      });
  *inv_std = RootInverse(SumLanes(squares), d, eps);
  const __m256 inv = _mm256_set1_ps(*inv_std);
  ForVectors(
      d, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        __m256 normed = _mm256_mul_ps(_mm256_sub_ps(Load(x + j, mask), m), inv);
        if (weight != nullptr) normed = _mm256_fmadd_ps(normed, Load(weight + j, mask), Load(bias + j, mask));
        _mm256_maskstore_ps(y + j, mask, normed);
      });
}

void LayerNormBackwardRow(const float* grad_y, const float* x, const float* weight, float mean, float inv_std,
                          std::int64_t d, bool accumulate, float* grad_x, float* grad_weight, float* grad_bias) {
  const __m256 m = _mm256_set1_ps(mean);
  const __m256 inv = _mm256_set1_ps(inv_std);
  __m256 sum = _mm256_setzero_ps();
  __m256 dot = _mm256_setzero_ps();
  ForVectors(
      d, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        __m256 g = Load(grad_y + j, mask);
        if (weight != nullptr) g = _mm256_mul_ps(g, Load(weight + j, mask));
        sum = _mm256_add_ps(sum, g);
        dot = _mm256_fmadd_ps(g, _mm256_mul_ps(_mm256_sub_ps(Load(x + j, mask), m), inv), dot);
      });
  const __m256 mean_g = _mm256_set1_ps(SumLanes(sum) / static_cast<float>(d));
  const __m256 mean_gn = _mm256_set1_ps(SumLanes(dot) / static_cast<float>(d));
  ForVectors(
      d, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 gy = Load(grad_y + j, mask);
        const __m256 normed = _mm256_mul_ps(_mm256_sub_ps(Load(x + j, mask), m), inv);
        const __m256 g = weight == nullptr ? gy : _mm256_mul_ps(gy, Load(weight + j, mask));
        __m256 grad = _mm256_mul_ps(inv, _mm256_fnmadd_ps(normed, mean_gn, _mm256_sub_ps(g, mean_g)));
        if (accumulate) grad = _mm256_add_ps(Load(grad_x + j, mask), grad);
        _mm256_maskstore_ps(grad_x + j, mask, grad);
        if (grad_weight != nullptr) {
          _mm256_maskstore_ps(grad_weight + j, mask, _mm256_fmadd_ps(gy, normed, Load(grad_weight + j, mask)));
        }
        if (grad_bias != nullptr) {
          _mm256_maskstore_ps(grad_bias + j, mask, _mm256_add_ps(Load(grad_bias + j, mask), gy));
        }
      });
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
