#include <immintrin.h>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_tiles_avx2.h"
#include "kernels/cpu/vec_math_avx2.h"

// Backward for narrow heads (at most 8 wide): 8 keys at a time. For a block of queries, every vector of keys
// visits the block's queries in ascending order: the gradients of its keys and values stay in registers, each
// query's gradient gathers in 8 lanes (key j in lane j % 8) that are summed at the very end. So a query's
// sum runs over keys ascending, a key's over queries ascending.
namespace qst {
namespace cpu {
namespace avx2 {
namespace {

constexpr std::int64_t kQueryBlock = 128;

struct Buffers {
  std::int64_t stride;  // length rounded up to 8
  float* keys;          // [head_dim][stride], transposed
  float* values;        // [head_dim][stride], transposed
  float* grad_keys;     // [head_dim][stride], transposed
  float* grad_values;   // [head_dim][stride], transposed
  float* q;             // [length][head_dim], scaled
  float* grad_out;      // [length][head_dim]
  float* log_sum_exp;   // [length]
  float* row_dot;       // [length], grad_out . out
  float* grad_q;        // [kQueryBlock][head_dim][8]
};

void TransposeBack(const float* from, std::int64_t stride, std::int64_t n, std::int64_t d, float* to, std::int64_t ld) {
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t c = 0; c < d; ++c) to[j * ld + c] = from[c * stride + j];
  }
}

// Keys key ... key + 7 with queries [begin, end) of the block that starts at block; heads are D wide. Three
// short loops, since one would need more than the 16 registers.
template <int D>
void Visit(const Buffers& b, std::int64_t key, std::int64_t block, std::int64_t begin, std::int64_t end) {
  alignas(32) float weights[kQueryBlock][8];
  alignas(32) float grad_scores[kQueryBlock][8];
  __m256 k[D];
  for (int c = 0; c < D; ++c) k[c] = _mm256_load_ps(b.keys + key + c * b.stride);
  for (std::int64_t i = begin; i < end; ++i) {
    const float* const q = b.q + i * D;
    const float* const grad_out = b.grad_out + i * D;
    __m256 score = _mm256_setzero_ps();
    __m256 grad_weight = _mm256_setzero_ps();
    for (int c = 0; c < D; ++c) {
      const __m256 v = _mm256_load_ps(b.values + key + c * b.stride);
      score = _mm256_fmadd_ps(_mm256_broadcast_ss(q + c), k[c], score);
      grad_weight = _mm256_fmadd_ps(_mm256_broadcast_ss(grad_out + c), v, grad_weight);
    }
    __m256 weight = ExpNonPositive(_mm256_sub_ps(score, _mm256_broadcast_ss(b.log_sum_exp + i)));
    __m256 grad_score = _mm256_mul_ps(weight, _mm256_sub_ps(grad_weight, _mm256_broadcast_ss(b.row_dot + i)));
    if (i < key + 7) {
      const __m256 visible = _mm256_castsi256_ps(LaneMask(i - key + 1));
      weight = _mm256_and_ps(weight, visible);
      grad_score = _mm256_and_ps(grad_score, visible);
    }
    _mm256_store_ps(weights[i - block], weight);
    _mm256_store_ps(grad_scores[i - block], grad_score);
    float* const grad_q = b.grad_q + (i - block) * 8 * D;
    for (int c = 0; c < D; ++c) {
      _mm256_store_ps(grad_q + 8 * c, _mm256_fmadd_ps(grad_score, k[c], _mm256_load_ps(grad_q + 8 * c)));
    }
  }
  const auto add = [&](const float(*factors)[8], const float* rows, float* grad) __attribute__((always_inline)) {
    __m256 sum[D];
    for (int c = 0; c < D; ++c) sum[c] = _mm256_load_ps(grad + c * b.stride);
    for (std::int64_t i = begin; i < end; ++i) {
      const __m256 factor = _mm256_load_ps(factors[i - block]);
      for (int c = 0; c < D; ++c) sum[c] = _mm256_fmadd_ps(factor, _mm256_broadcast_ss(rows + i * D + c), sum[c]);
    }
    for (int c = 0; c < D; ++c) _mm256_store_ps(grad + c * b.stride, sum[c]);
  };
  add(grad_scores, b.q, b.grad_keys + key);
  add(weights, b.grad_out, b.grad_values + key);
}

template <int D>
void VisitAll(const Buffers& b, const AttentionBackwardTask& t) {
  for (std::int64_t block = 0; block < t.length; block += kQueryBlock) {
    const std::int64_t end = t.length < block + kQueryBlock ? t.length : block + kQueryBlock;
    for (std::int64_t i = 0; i < (end - block) * D; ++i) _mm256_store_ps(b.grad_q + 8 * i, _mm256_setzero_ps());
    for (std::int64_t key = 0; key < end; key += 8) Visit<D>(b, key, block, key > block ? key : block, end);
    for (std::int64_t i = block; i < end; ++i) {
      for (int c = 0; c < D; ++c) {
        const __m256 lanes = _mm256_load_ps(b.grad_q + ((i - block) * D + c) * 8);
        t.grad_q[i * t.grad_q_ld + c] = SumLanes(lanes) * t.scale;
      }
    }
  }
}

constexpr decltype(&VisitAll<1>) kVisitAll[] = {&VisitAll<1>, &VisitAll<2>, &VisitAll<3>, &VisitAll<4>,
                                                &VisitAll<5>, &VisitAll<6>, &VisitAll<7>, &VisitAll<8>};

}  // namespace

std::int64_t AttentionBackwardScratch(std::int64_t length, std::int64_t head_dim) {
  if (head_dim > kWidestNarrowBackward) return WideAttentionBackwardScratch(length, head_dim);
  const std::int64_t stride = RoundUp(length, 8);
  return 6 * stride * head_dim + 2 * stride + kQueryBlock * head_dim * 8;
}

void RunAttentionBackward(const AttentionBackwardTask& t, float* scratch) {
  const std::int64_t d = t.head_dim;
  if (d > kWidestNarrowBackward) return RunWideAttentionBackward(t, scratch);
  Buffers b;
  b.stride = RoundUp(t.length, 8);
  const std::int64_t size = b.stride * d;
  b.keys = scratch;
  b.values = b.keys + size;
  b.grad_keys = b.values + size;
  b.grad_values = b.grad_keys + size;
  b.q = b.grad_values + size;
  b.grad_out = b.q + size;
  b.log_sum_exp = b.grad_out + size;
  b.row_dot = b.log_sum_exp + b.stride;
  b.grad_q = b.row_dot + b.stride;

  Transpose(t.k, t.k_ld, t.length, d, b.keys, b.stride);
  Transpose(t.v, t.v_ld, t.length, d, b.values, b.stride);
  for (std::int64_t i = 0; i < 2 * size; i += 8) _mm256_store_ps(b.grad_keys + i, _mm256_setzero_ps());
  for (std::int64_t i = 0; i < t.length; ++i) {
    float dot = 0.0f;
    for (std::int64_t c = 0; c < d; ++c) {
      const float grad_out = t.grad_out[i * t.grad_out_ld + c];
      b.q[i * d + c] = t.q[i * t.q_ld + c] * t.scale;
      b.grad_out[i * d + c] = grad_out;
      dot += grad_out * t.out[i * t.out_ld + c];
    }
    b.log_sum_exp[i] = t.log_sum_exp[i * t.log_sum_exp_ld];
    b.row_dot[i] = dot;
  }
  kVisitAll[d - 1](b, t);
  TransposeBack(b.grad_keys, b.stride, t.length, d, t.grad_k, t.grad_k_ld);
  TransposeBack(b.grad_values, b.stride, t.length, d, t.grad_v, t.grad_v_ld);
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
