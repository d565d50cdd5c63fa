// Register tiles of the attention kernels: R rows by 16 columns. For attention*_avx2.cc only; internal
// linkage, as in vec_math_avx2.h. Every element's sum runs in ascending order in one chain, so that it is the
// same for any R.
#ifndef QST_KERNELS_CPU_ATTENTION_TILES_AVX2_H_
#define QST_KERNELS_CPU_ATTENTION_TILES_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/attention_kernels.h"

namespace qst {
namespace cpu {

// 12 sums, 2 columns of operands and a broadcast value fill the 16 registers.
constexpr std::int64_t kTileRows = 6;

static inline std::int64_t RoundUp(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// to[d][to_ld] = from[n][d] transposed, zeros in columns n ... to_ld - 1.
static inline void Transpose(const float* from, std::int64_t from_ld, std::int64_t n, std::int64_t d, float* to,
                             std::int64_t to_ld) {
  for (std::int64_t c = 0; c < d; ++c) {
    float* row = to + c * to_ld;
    for (std::int64_t j = 0; j < n; ++j) row[j] = from[j * from_ld + c];
    for (std::int64_t j = n; j < to_ld; ++j) row[j] = 0.0f;
  }
}

// to[n][width] = from[n][d] * factor, zeros in columns d ... width - 1.
static inline void CopyRows(const float* from, std::int64_t from_ld, std::int64_t n, std::int64_t d, float factor,
                            float* to, std::int64_t width) {
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t c = 0; c < d; ++c) to[j * width + c] = from[j * from_ld + c] * factor;
    for (std::int64_t c = d; c < width; ++c) to[j * width + c] = 0.0f;
  }
}

// scores[R][kKeyBlock] = x[R][d] times keys[d][kKeyBlock], for keys 0 ... num_keys - 1 rounded up to 16.
template <int R>
static void Scores(const float* x, std::int64_t x_ld, std::int64_t d, const float* keys, std::int64_t num_keys,
                   float* scores) {
  for (std::int64_t j = 0; j < num_keys; j += 16) {
    __m256 sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    const float* column = keys + j;
    for (std::int64_t c = 0; c < d; ++c, column += kKeyBlock) {
      const __m256 k0 = _mm256_load_ps(column);
      const __m256 k1 = _mm256_load_ps(column + 8);
      for (int r = 0; r < R; ++r) {
        const __m256 value = _mm256_broadcast_ss(x + r * x_ld + c);
        sum[r][0] = _mm256_fmadd_ps(value, k0, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(value, k1, sum[r][1]);
      }
    }
    for (int r = 0; r < R; ++r) {
      _mm256_store_ps(scores + r * kKeyBlock + j, sum[r][0]);
      _mm256_store_ps(scores + r * kKeyBlock + j + 8, sum[r][1]);
    }
  }
}

// acc[R][width] += sum over i in [first, last) of weight(r, i) * values[i][width], where weight(r, i) lies at
// weights[r * row_step + i * step]. width is a multiple of 16.
template <int R>
static void AddProducts(const float* weights, std::int64_t row_step, std::int64_t step, const float* values,
                        std::int64_t width, std::int64_t first, std::int64_t last, float* acc) {
  for (std::int64_t c = 0; c < width; c += 16) {
    __m256 sum[R][2];
    for (int r = 0; r < R; ++r) {
      sum[r][0] = _mm256_load_ps(acc + r * width + c);
      sum[r][1] = _mm256_load_ps(acc + r * width + c + 8);
    }
    for (std::int64_t i = first; i < last; ++i) {
      const __m256 v0 = _mm256_load_ps(values + i * width + c);
      const __m256 v1 = _mm256_load_ps(values + i * width + c + 8);
      for (int r = 0; r < R; ++r) {
        const __m256 weight = _mm256_broadcast_ss(weights + r * row_step + i * step);
        sum[r][0] = _mm256_fmadd_ps(weight, v0, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(weight, v1, sum[r][1]);
      }
    }
    for (int r = 0; r < R; ++r) {
      _mm256_store_ps(acc + r * width + c, sum[r][0]);
      _mm256_store_ps(acc + r * width + c + 8, sum[r][1]);
    }
  }
}

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ATTENTION_TILES_AVX2_H_
