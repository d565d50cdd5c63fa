#include "kernels/cpu/attention.h"

#include <immintrin.h>

#include "kernels/cpu/vec_math_avx2.h"

// Backward, 8 keys at a time at any head width. For a block of queries, every vector of keys visits the
// block's queries in ascending order: the gradients of its keys and values stay in registers (head widths
// 4, 5, 8) or scratch, each query's gradient gathers in 8 lanes (key j in lane j % 8) that are summed at
// the very end. So a query's sum runs over keys ascending, a key's over queries ascending.
namespace qst {
namespace cpu {
namespace avx2 {
namespace {

constexpr std::int64_t kQueryBlock = 128;

std::int64_t RoundUp(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

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

// to[d][stride] = from[n][d] transposed, zeros behind.
void Transpose(const float* from, std::int64_t ld, std::int64_t n, std::int64_t d, std::int64_t stride, float* to) {
  for (std::int64_t c = 0; c < d; ++c) {
    for (std::int64_t j = 0; j < n; ++j) to[c * stride + j] = from[j * ld + c];
    for (std::int64_t j = n; j < stride; ++j) to[c * stride + j] = 0.0f;
  }
}

void TransposeBack(const float* from, std::int64_t stride, std::int64_t n, std::int64_t d, float* to,
                   std::int64_t ld) {
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t c = 0; c < d; ++c) to[j * ld + c] = from[c * stride + j];
  }
}

// Keys key ... key + 7 with queries [begin, end) of the block that starts at block. kD is head_dim, or 0
// for any (given in d), with the keys' gradients in scratch.
template <int kD>
void Visit(const Buffers& b, std::int64_t d, std::int64_t key, std::int64_t block, std::int64_t begin,
           std::int64_t end) {
  constexpr int kRegisters = kD > 0 ? kD : 1;
  const std::int64_t width = kD > 0 ? kD : d;
  const float* const keys = b.keys + key;
  const float* const values = b.values + key;
  float* const grad_keys = b.grad_keys + key;
  float* const grad_values = b.grad_values + key;
  __m256 grad_k[kRegisters];
  __m256 grad_v[kRegisters];
  if (kD > 0) {
    for (int c = 0; c < kD; ++c) {
      grad_k[c] = _mm256_load_ps(grad_keys + c * b.stride);
      grad_v[c] = _mm256_load_ps(grad_values + c * b.stride);
    }
  }
  for (std::int64_t i = begin; i < end; ++i) {
    const float* const q = b.q + i * width;
    const float* const grad_out = b.grad_out + i * width;
    __m256 score = _mm256_setzero_ps();
    __m256 grad_weight = _mm256_setzero_ps();
    for (std::int64_t c = 0; c < width; ++c) {
      score = _mm256_fmadd_ps(_mm256_broadcast_ss(q + c), _mm256_load_ps(keys + c * b.stride), score);
      grad_weight =
          _mm256_fmadd_ps(_mm256_broadcast_ss(grad_out + c), _mm256_load_ps(values + c * b.stride), grad_weight);
    }
    __m256 weight = ExpNonPositive(_mm256_sub_ps(score, _mm256_broadcast_ss(b.log_sum_exp + i)));
    __m256 grad_score = _mm256_mul_ps(weight, _mm256_sub_ps(grad_weight, _mm256_broadcast_ss(b.row_dot + i)));
    if (i < key + 7) {
      const __m256 visible = _mm256_castsi256_ps(LaneMask(i - key + 1));
      weight = _mm256_and_ps(weight, visible);
      grad_score = _mm256_and_ps(grad_score, visible);
    }
    float* const grad_q = b.grad_q + (i - block) * 8 * width;
    for (std::int64_t c = 0; c < width; ++c) {
      const __m256 k = _mm256_load_ps(keys + c * b.stride);
      _mm256_store_ps(grad_q + 8 * c, _mm256_fmadd_ps(grad_score, k, _mm256_load_ps(grad_q + 8 * c)));
      const __m256 qs = _mm256_broadcast_ss(q + c);
      const __m256 go = _mm256_broadcast_ss(grad_out + c);
      if (kD > 0) {
        grad_k[c] = _mm256_fmadd_ps(grad_score, qs, grad_k[c]);
        grad_v[c] = _mm256_fmadd_ps(weight, go, grad_v[c]);
      } else {
        float* gk = grad_keys + c * b.stride;
        float* gv = grad_values + c * b.stride;
        _mm256_store_ps(gk, _mm256_fmadd_ps(grad_score, qs, _mm256_load_ps(gk)));
        _mm256_store_ps(gv, _mm256_fmadd_ps(weight, go, _mm256_load_ps(gv)));
      }
    }
  }
  if (kD > 0) {
    for (int c = 0; c < kD; ++c) {
      _mm256_store_ps(grad_keys + c * b.stride, grad_k[c]);
      _mm256_store_ps(grad_values + c * b.stride, grad_v[c]);
    }
  }
}

template <int kD>
void VisitAll(const Buffers& b, const AttentionBackwardTask& t) {
  const std::int64_t d = t.head_dim;
  for (std::int64_t block = 0; block < t.length; block += kQueryBlock) {
    const std::int64_t end = t.length < block + kQueryBlock ? t.length : block + kQueryBlock;
    for (std::int64_t i = 0; i < (end - block) * d; ++i) _mm256_store_ps(b.grad_q + 8 * i, _mm256_setzero_ps());
    for (std::int64_t key = 0; key < end; key += 8) Visit<kD>(b, d, key, block, key > block ? key : block, end);
    for (std::int64_t i = block; i < end; ++i) {
      for (std::int64_t c = 0; c < d; ++c) {
        const __m256 lanes = _mm256_load_ps(b.grad_q + ((i - block) * d + c) * 8);
        t.grad_q[i * t.grad_q_ld + c] = SumLanes(lanes) * t.scale;
      }
    }
  }
}

}  // namespace

std::int64_t AttentionBackwardScratch(std::int64_t length, std::int64_t head_dim) {
  const std::int64_t stride = RoundUp(length, 8);
  return 6 * stride * head_dim + 2 * stride + kQueryBlock * head_dim * 8;
}

void RunAttentionBackward(const AttentionBackwardTask& t, float* scratch) {
  const std::int64_t d = t.head_dim;
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

  Transpose(t.k, t.k_ld, t.length, d, b.stride, b.keys);
  Transpose(t.v, t.v_ld, t.length, d, b.stride, b.values);
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
  switch (d) {
    case 4:
      VisitAll<4>(b, t);
      break;
    case 5:
      VisitAll<5>(b, t);
      break;
    case 8:
      VisitAll<8>(b, t);
      break;
    default:
      VisitAll<0>(b, t);
      break;
  }
  TransposeBack(b.grad_keys, b.stride, t.length, d, t.grad_k, t.grad_k_ld);
  TransposeBack(b.grad_values, b.stride, t.length, d, t.grad_v, t.grad_v_ld);
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
