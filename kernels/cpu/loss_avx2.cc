#include <immintrin.h>

#include "kernels/cpu/loss_kernels.h"
#include "kernels/cpu/vec_math_avx2.h"

namespace qst {
namespace cpu {
namespace avx2 {
namespace {

// Sums of this many values stay in float32 before they go to float64: short enough for its precision.
constexpr std::int64_t kBlock = 1024;

inline __m256d AddWide(__m256d sum, __m256 values) {
  sum = _mm256_add_pd(sum, _mm256_cvtps_pd(_mm256_castps256_ps128(values)));
  return _mm256_add_pd(sum, _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1)));
}

}  // namespace

float MaxOfRow(const float* x, std::int64_t n) {
  __m256 max0 = _mm256_set1_ps(x[0]);
  __m256 max1 = max0;
  __m256 max2 = max0;
  __m256 max3 = max0;
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    max0 = _mm256_max_ps(max0, _mm256_loadu_ps(x + i));
    max1 = _mm256_max_ps(max1, _mm256_loadu_ps(x + i + 8));
    max2 = _mm256_max_ps(max2, _mm256_loadu_ps(x + i + 16));
    max3 = _mm256_max_ps(max3, _mm256_loadu_ps(x + i + 24));
  }
  max0 = _mm256_max_ps(_mm256_max_ps(max0, max1), _mm256_max_ps(max2, max3));
  for (; i + 8 <= n; i += 8) max0 = _mm256_max_ps(max0, _mm256_loadu_ps(x + i));
  if (i < n) {
    const __m256i mask = LaneMask(n - i);
    max0 = _mm256_max_ps(max0, _mm256_blendv_ps(max0, Load(x + i, mask), _mm256_castsi256_ps(mask)));
  }
  return MaxLanes(max0);
}

std::int64_t FirstIndexOf(float value, const float* x, std::int64_t n) {
  const __m256 wanted = _mm256_set1_ps(value);
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const int hits = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), wanted, _CMP_EQ_OQ));
    if (hits != 0) return i + __builtin_ctz(static_cast<unsigned>(hits));
  }
  for (; i < n; ++i) {
    if (x[i] == value) return i;
  }
  return 0;
}

double SumOfExp(float* x, std::int64_t n, float max, bool keep) {
  const __m256 shift = _mm256_set1_ps(max);
  __m256d total = _mm256_setzero_pd();
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = n < begin + kBlock ? n : begin + kBlock;
    __m256 sum0 = _mm256_setzero_ps();
    __m256 sum1 = _mm256_setzero_ps();
    std::int64_t i = begin;
    for (; i + 16 <= end; i += 16) {
      const __m256 a = ExpNonPositive(_mm256_sub_ps(_mm256_loadu_ps(x + i), shift));
      const __m256 b = ExpNonPositive(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), shift));
      if (keep) {
        _mm256_storeu_ps(x + i, a);
        _mm256_storeu_ps(x + i + 8, b);
      }
      sum0 = _mm256_add_ps(sum0, a);
      sum1 = _mm256_add_ps(sum1, b);
    }
    for (; i < end; i += 8) {
      const __m256i mask = LaneMask(end - i < 8 ? end - i : 8);
      const __m256 value = ExpNonPositive(_mm256_sub_ps(Load(x + i, mask), shift));
      if (keep) _mm256_maskstore_ps(x + i, mask, value);
      sum0 = _mm256_add_ps(sum0, _mm256_and_ps(value, _mm256_castsi256_ps(mask)));
    }
    total = AddWide(total, _mm256_add_ps(sum0, sum1));
  }
  alignas(32) double lanes[4];
  _mm256_store_pd(lanes, total);
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

void ScaleRow(float factor, std::int64_t n, float* x) {
  const __m256 factors = _mm256_set1_ps(factor);
  ForVectors(
      n, [&](std::int64_t i, __m256i mask) __attribute__((always_inline)) {
        _mm256_maskstore_ps(x + i, mask, _mm256_mul_ps(Load(x + i, mask), factors));
      });
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
