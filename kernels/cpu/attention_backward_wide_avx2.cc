#include <immintrin.h>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_tiles_avx2.h"
#include "kernels/cpu/vec_math_avx2.h"

// Backward for heads wider than 8. For every block of keys, ascending, and every block of queries that sees
// it, ascending:
//   p = exp(q k - log_sum_exp) and g = p (grad_out v - row_dot), kKeyBlock by kKeyBlock, zero where masked;
//   grad_q += g k;  grad_k += g^T q;  grad_v += p^T grad_out.
// So a query's sum runs over keys ascending, a key's over queries ascending.
namespace qst {
namespace cpu {
namespace avx2 {
namespace {

constexpr decltype(&Scores<1>) kScores[kTileRows] = {&Scores<1>, &Scores<2>, &Scores<3>,
                                                     &Scores<4>, &Scores<5>, &Scores<6>};
constexpr decltype(&AddProducts<1>) kAddProducts[kTileRows] = {&AddProducts<1>, &AddProducts<2>, &AddProducts<3>,
                                                               &AddProducts<4>, &AddProducts<5>, &AddProducts<6>};

std::int64_t Min(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

struct Buffers {
  std::int64_t d;
  std::int64_t width;  // d rounded up to 16
  float* q;            // [length][width], scaled
  float* k;            // [length][width]
  float* grad_out;     // [length][width]
  float* grad_q;       // [length][width]
  float* grad_k;       // [length][width]
  float* grad_v;       // [length][width]
  float* keys;         // [d][kKeyBlock], this block's keys transposed
  float* values;       // [d][kKeyBlock], this block's values transposed
  float* weights;      // [kKeyBlock queries][kKeyBlock keys], p above
  float* grad_scores;  // the same, g above
  float* log_sum_exp;  // [length]
  float* row_dot;      // [length], grad_out . out
};

// Queries [query, query + num_queries) with keys [key, key + num_keys).
void Block(const Buffers& b, std::int64_t query, std::int64_t num_queries, std::int64_t key, std::int64_t num_keys) {
  const std::int64_t w = b.width;
  for (std::int64_t r = 0; r < num_queries; r += kTileRows) {
    const std::int64_t size = Min(kTileRows, num_queries - r);
    const std::int64_t row = query + r;
    // Keys that the last query of the tile sees.
    const std::int64_t visible = Min(num_keys, row + size - key);
    float* const weights = b.weights + r * kKeyBlock;
    float* const grad_scores = b.grad_scores + r * kKeyBlock;
    kScores[size - 1](b.q + row * w, w, b.d, b.keys, visible, weights);
    kScores[size - 1](b.grad_out + row * w, w, b.d, b.values, visible, grad_scores);
    for (std::int64_t i = 0; i < size; ++i) {
      const __m256 shift = _mm256_set1_ps(b.log_sum_exp[row + i]);
      const __m256 dot = _mm256_set1_ps(b.row_dot[row + i]);
      for (std::int64_t j = 0; j < num_keys; j += 8) {
        float* const p = weights + i * kKeyBlock + j;
        float* const g = grad_scores + i * kKeyBlock + j;
        const std::int64_t lanes = row + i + 1 - key - j;
        if (lanes <= 0) {
          _mm256_store_ps(p, _mm256_setzero_ps());
          _mm256_store_ps(g, _mm256_setzero_ps());
          continue;
        }
        const __m256 mask = _mm256_castsi256_ps(LaneMask(Min(lanes, 8)));
        const __m256 weight = ExpNonPositive(_mm256_sub_ps(_mm256_load_ps(p), shift));
        const __m256 grad = _mm256_mul_ps(weight, _mm256_sub_ps(_mm256_load_ps(g), dot));
        _mm256_store_ps(p, _mm256_and_ps(weight, mask));
        _mm256_store_ps(g, _mm256_and_ps(grad, mask));
      }
    }
    kAddProducts[size - 1](grad_scores, kKeyBlock, 1, b.k + key * w, w, 0, visible, b.grad_q + row * w);
  }
  for (std::int64_t j = 0; j < num_keys; j += kTileRows) {
    const std::int64_t size = Min(kTileRows, num_keys - j);
    // Queries before the tile's first key see none of its keys.
    const std::int64_t first = key + j > query ? key + j - query : 0;
    float* const grad_k = b.grad_k + (key + j) * w;
    float* const grad_v = b.grad_v + (key + j) * w;
    kAddProducts[size - 1](b.grad_scores + j, 1, kKeyBlock, b.q + query * w, w, first, num_queries, grad_k);
    kAddProducts[size - 1](b.weights + j, 1, kKeyBlock, b.grad_out + query * w, w, first, num_queries, grad_v);
  }
}

}  // namespace

std::int64_t WideAttentionBackwardScratch(std::int64_t length, std::int64_t head_dim) {
  return 6 * length * RoundUp(head_dim, 16) + 2 * head_dim * kKeyBlock + 2 * kKeyBlock * kKeyBlock +
         2 * RoundUp(length, 8);
}

void RunWideAttentionBackward(const AttentionBackwardTask& t, float* scratch) {
  const std::int64_t n = t.length;
  Buffers b;
  b.d = t.head_dim;
  b.width = RoundUp(b.d, 16);
  const std::int64_t size = n * b.width;
  b.q = scratch;
  b.k = b.q + size;
  b.grad_out = b.k + size;
  b.grad_q = b.grad_out + size;
  b.grad_k = b.grad_q + size;
  b.grad_v = b.grad_k + size;
  b.keys = b.grad_v + size;
  b.values = b.keys + b.d * kKeyBlock;
  b.weights = b.values + b.d * kKeyBlock;
  b.grad_scores = b.weights + kKeyBlock * kKeyBlock;
  b.log_sum_exp = b.grad_scores + kKeyBlock * kKeyBlock;
  b.row_dot = b.log_sum_exp + RoundUp(n, 8);

  CopyRows(t.q, t.q_ld, n, b.d, t.scale, b.q, b.width);
  CopyRows(t.k, t.k_ld, n, b.d, 1.0f, b.k, b.width);
  CopyRows(t.grad_out, t.grad_out_ld, n, b.d, 1.0f, b.grad_out, b.width);
  for (std::int64_t i = 0; i < 3 * size; i += 8) _mm256_store_ps(b.grad_q + i, _mm256_setzero_ps());
  for (std::int64_t i = 0; i < n; ++i) {
    float dot = 0.0f;
    for (std::int64_t c = 0; c < b.d; ++c) dot += t.grad_out[i * t.grad_out_ld + c] * t.out[i * t.out_ld + c];
    b.row_dot[i] = dot;
    b.log_sum_exp[i] = t.log_sum_exp[i * t.log_sum_exp_ld];
  }

  for (std::int64_t key = 0; key < n; key += kKeyBlock) {
    const std::int64_t num_keys = Min(kKeyBlock, n - key);
    Transpose(t.k + key * t.k_ld, t.k_ld, num_keys, b.d, b.keys, kKeyBlock);
    Transpose(t.v + key * t.v_ld, t.v_ld, num_keys, b.d, b.values, kKeyBlock);
    for (std::int64_t query = key; query < n; query += kKeyBlock) {
      Block(b, query, Min(kKeyBlock, n - query), key, num_keys);
    }
  }

  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t c = 0; c < b.d; ++c) {
      t.grad_q[i * t.grad_q_ld + c] = b.grad_q[i * b.width + c] * t.scale;
      t.grad_k[i * t.grad_k_ld + c] = b.grad_k[i * b.width + c];
      t.grad_v[i * t.grad_v_ld + c] = b.grad_v[i * b.width + c];
    }
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
