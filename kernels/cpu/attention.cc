#include "kernels/cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "kernels/cpu/attention_kernels.h"

namespace qst {
namespace cpu {
namespace portable {

std::int64_t AttentionScratch(std::int64_t, std::int64_t head_dim) { return head_dim; }

// One row: for each block of keys, with running maximum m, sum l and weighted values a,
//   m' = max(m, max s);  l = l exp(m - m') + sum exp(s - m');  a = a exp(m - m') + sum exp(s - m') v.
void RunAttention(const AttentionTask& t, float* scratch) {
  const std::int64_t d = t.head_dim;
  float* acc = scratch;
  for (std::int64_t row = 0; row < t.num_positions * t.group; ++row) {
    const std::int64_t position = row / t.group;
    const std::int64_t head = row % t.group;
    const float* q = t.q + position * t.q_ld + head * d;
    const std::int64_t num_keys = t.num_keys + position;
    const std::int64_t first_key = t.window == 0 ? 0 : std::max<std::int64_t>(0, num_keys - t.window);
    float max = -std::numeric_limits<float>::infinity();
    float sum = 0.0f;
    std::fill_n(acc, d, 0.0f);
    for (std::int64_t first = first_key / kKeyBlock * kKeyBlock; first < num_keys; first += kKeyBlock) {
      const std::int64_t n = std::min(kKeyBlock, num_keys - first);
      const std::int64_t begin = std::max<std::int64_t>(0, first_key - first);
      float p[kKeyBlock];
      float new_max = max;
      for (std::int64_t j = begin; j < n; ++j) {
        const float* k = t.k + (first + j) * t.k_ld;
        float dot = 0.0f;
        for (std::int64_t c = 0; c < d; ++c) dot += q[c] * k[c];
        p[j] = dot * t.scale;
        new_max = p[j] > new_max ? p[j] : new_max;
      }
      const float correction = new_max == max ? 1.0f : std::exp(max - new_max);
      max = new_max;
      sum *= correction;
      for (std::int64_t c = 0; c < d; ++c) acc[c] *= correction;
      for (std::int64_t j = begin; j < n; ++j) {
        const float* v = t.v + (first + j) * t.v_ld;
        const float weight = std::exp(p[j] - max);
        sum += weight;
        for (std::int64_t c = 0; c < d; ++c) acc[c] += weight * v[c];
      }
    }
    float* out = t.out + position * t.out_ld + head * d;
    for (std::int64_t c = 0; c < d; ++c) out[c] = acc[c] / sum;
    if (t.log_sum_exp != nullptr) t.log_sum_exp[position * t.log_sum_exp_ld + head] = max + std::log(sum);
  }
}

std::int64_t AttentionBackwardScratch(std::int64_t, std::int64_t) { return 0; }

// With p = exp(scale q k - log_sum_exp) and g = p (grad_out v - grad_out out) scale:
//   grad_q = sum over keys g k;  grad_k = sum over queries g q;  grad_v = sum over queries p grad_out.
void RunAttentionBackward(const AttentionBackwardTask& t, float*) {
  const std::int64_t d = t.head_dim;
  for (std::int64_t i = 0; i < t.length; ++i) {
    std::fill_n(t.grad_q + i * t.grad_q_ld, d, 0.0f);
    std::fill_n(t.grad_k + i * t.grad_k_ld, d, 0.0f);
    std::fill_n(t.grad_v + i * t.grad_v_ld, d, 0.0f);
  }
  for (std::int64_t i = 0; i < t.length; ++i) {
    const float* q = t.q + i * t.q_ld;
    const float* grad_out = t.grad_out + i * t.grad_out_ld;
    const float* out = t.out + i * t.out_ld;
    float* grad_q = t.grad_q + i * t.grad_q_ld;
    float row_dot = 0.0f;
    for (std::int64_t c = 0; c < d; ++c) row_dot += grad_out[c] * out[c];
    for (std::int64_t j = 0; j <= i; ++j) {
      const float* k = t.k + j * t.k_ld;
      const float* v = t.v + j * t.v_ld;
      float score = 0.0f;
      float grad_weight = 0.0f;
      for (std::int64_t c = 0; c < d; ++c) {
        score += q[c] * k[c];
        grad_weight += grad_out[c] * v[c];
      }
      const float weight = std::exp(score * t.scale - t.log_sum_exp[i * t.log_sum_exp_ld]);
      const float grad_score = weight * (grad_weight - row_dot) * t.scale;
      float* grad_k = t.grad_k + j * t.grad_k_ld;
      float* grad_v = t.grad_v + j * t.grad_v_ld;
      for (std::int64_t c = 0; c < d; ++c) {
        grad_q[c] += grad_score * k[c];
        grad_k[c] += grad_score * q[c];
        grad_v[c] += weight * grad_out[c];
      }
    }
  }
}

}  // namespace portable

namespace {

constexpr std::align_val_t kCacheLine{64};

struct AlignedDelete {
  void operator()(float* p) const { operator delete[](p, kCacheLine); }
};
using Buffer = std::unique_ptr<float[], AlignedDelete>;

// n floats, uninitialised, aligned to a cache line.
Buffer MakeBuffer(std::int64_t n) {
  return Buffer(static_cast<float*>(operator new[](static_cast<std::size_t>(n) * sizeof(float), kCacheLine)));
}

// Runs task(i, scratch) for i in [0, n), each thread taking the next one when it is free: tasks differ in
// length. Which thread runs a task changes nothing.
template <typename Task>
void RunTasks(const Exec& exec, std::int64_t n, std::int64_t scratch_floats, const Task& task) {
  std::atomic<std::int64_t> next{0};
  const std::int64_t num_runners = std::min<std::int64_t>(n, exec.threads->num_threads());
  exec.threads->ParallelFor(num_runners, 1, [&](std::int64_t, std::int64_t) {
    Buffer scratch;
    for (std::int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
      if (scratch == nullptr) scratch = MakeBuffer(scratch_floats);
      task(i, scratch.get());
    }
  });
}

// Query positions per forward task: enough rows to share the packing of a block of keys.
std::int64_t PositionsPerTask(std::int64_t group) {
  constexpr std::int64_t kRows = 192;
  return std::min<std::int64_t>(64, std::max<std::int64_t>(1, kRows / group));
}

}  // namespace

void Attention(const Exec& exec, const AttentionShape& shape, const ConstMatrixView& q, const ConstMatrixView& k,
               const ConstMatrixView& v, const SequenceOffsets& q_offsets, const SequenceOffsets& k_offsets,
               const MatrixView& out, float* log_sum_exp) {
  const std::int64_t d = shape.head_dim;
  const std::int64_t group = shape.num_heads / shape.num_kv_heads;
  const std::int64_t block = PositionsPerTask(group);
  struct Block {
    std::int64_t sequence;
    std::int64_t first;  // position inside the sequence
  };
  std::vector<Block> blocks;
  for (std::int64_t s = 0; s < q_offsets.num; ++s) {
    const std::int64_t length = q_offsets.offsets[s + 1] - q_offsets.offsets[s];
    for (std::int64_t first = 0; first < length; first += block) blocks.push_back({s, first});
  }
  const std::int64_t num_blocks = blocks.size();
  const std::int64_t scratch_floats =
      exec.use_avx2 ? avx2::AttentionScratch(block * group, d) : portable::AttentionScratch(block * group, d);
  RunTasks(exec, num_blocks * shape.num_kv_heads, scratch_floats, [&](std::int64_t i, float* scratch) {
    // Later blocks see more keys: they go first, so that the last task to finish is a short one.
    const Block& b = blocks[num_blocks - 1 - i / shape.num_kv_heads];
    const std::int64_t kv_head = i % shape.num_kv_heads;
    const std::int64_t q_begin = q_offsets.offsets[b.sequence];
    const std::int64_t q_length = q_offsets.offsets[b.sequence + 1] - q_begin;
    const std::int64_t k_begin = k_offsets.offsets[b.sequence];
    const std::int64_t k_length = k_offsets.offsets[b.sequence + 1] - k_begin;
    const std::int64_t row = q_begin + b.first;
    AttentionTask t;
    t.q = q.row<float>(row) + kv_head * group * d;
    t.q_ld = q.ld;
    t.k = k.row<float>(k_begin) + kv_head * d;
    t.k_ld = k.ld;
    t.v = v.row<float>(k_begin) + kv_head * d;
    t.v_ld = v.ld;
    t.out = out.row<float>(row) + kv_head * group * d;
    t.out_ld = out.ld;
    t.log_sum_exp = log_sum_exp == nullptr ? nullptr : log_sum_exp + row * shape.num_heads + kv_head * group;
    t.log_sum_exp_ld = shape.num_heads;
    t.num_positions = std::min(block, q_length - b.first);
    t.num_keys = k_length - q_length + b.first + 1;
    t.group = group;
    t.head_dim = d;
    t.scale = shape.scale;
    t.window = shape.window;
    exec.use_avx2 ? avx2::RunAttention(t, scratch) : portable::RunAttention(t, scratch);
  });
}

void AttentionBackward(const Exec& exec, const AttentionShape& shape, const ConstMatrixView& grad_out,
                       const ConstMatrixView& q, const ConstMatrixView& k, const ConstMatrixView& v,
                       const ConstMatrixView& out, const float* log_sum_exp, const SequenceOffsets& offsets,
                       const MatrixView& grad_q, const MatrixView& grad_k, const MatrixView& grad_v) {
  const std::int64_t d = shape.head_dim;
  const std::int64_t group = shape.num_heads / shape.num_kv_heads;
  // Query heads that share a key-value head leave their shares of its gradients here.
  const std::int64_t shares_ld = shape.num_heads * d;
  const Buffer shares_k = MakeBuffer(group == 1 ? 0 : q.rows * shares_ld);
  const Buffer shares_v = MakeBuffer(group == 1 ? 0 : q.rows * shares_ld);
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < offsets.num; ++s) {
    longest = std::max<std::int64_t>(longest, offsets.offsets[s + 1] - offsets.offsets[s]);
  }
  const std::int64_t scratch_floats =
      exec.use_avx2 ? avx2::AttentionBackwardScratch(longest, d) : portable::AttentionBackwardScratch(longest, d);
  RunTasks(exec, offsets.num * shape.num_heads, scratch_floats, [&](std::int64_t i, float* scratch) {
    const std::int64_t s = i / shape.num_heads;
    const std::int64_t head = i % shape.num_heads;
    const std::int64_t kv_head = head / group;
    const std::int64_t row = offsets.offsets[s];
    AttentionBackwardTask t;
    t.length = offsets.offsets[s + 1] - row;
    if (t.length == 0) return;
    t.grad_out = grad_out.row<float>(row) + head * d;
    t.grad_out_ld = grad_out.ld;
    t.q = q.row<float>(row) + head * d;
    t.q_ld = q.ld;
    t.k = k.row<float>(row) + kv_head * d;
    t.k_ld = k.ld;
    t.v = v.row<float>(row) + kv_head * d;
    t.v_ld = v.ld;
    t.out = out.row<float>(row) + head * d;
    t.out_ld = out.ld;
    t.log_sum_exp = log_sum_exp + row * shape.num_heads + head;
    t.log_sum_exp_ld = shape.num_heads;
    t.grad_q = grad_q.row<float>(row) + head * d;
    t.grad_q_ld = grad_q.ld;
    t.grad_k = group == 1 ? grad_k.row<float>(row) + head * d : shares_k.get() + row * shares_ld + head * d;
    t.grad_k_ld = group == 1 ? grad_k.ld : shares_ld;
    t.grad_v = group == 1 ? grad_v.row<float>(row) + head * d : shares_v.get() + row * shares_ld + head * d;
    t.grad_v_ld = group == 1 ? grad_v.ld : shares_ld;
    t.head_dim = d;
    t.scale = shape.scale;
    exec.use_avx2 ? avx2::RunAttentionBackward(t, scratch) : portable::RunAttentionBackward(t, scratch);
  });
  if (group == 1) return;
  ParallelRows(exec, q.rows, 2 * shares_ld, [&](std::int64_t begin, std::int64_t end) {
    const auto add_shares = [&](const float* shares, float* grad) {
      for (std::int64_t kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
        for (std::int64_t c = 0; c < d; ++c) {
          const float* share = shares + kv_head * group * d + c;
          float sum = share[0];
          for (std::int64_t h = 1; h < group; ++h) sum += share[h * d];
          grad[kv_head * d + c] = sum;
        }
      }
    };
    for (std::int64_t i = begin; i < end; ++i) {
      add_shares(shares_k.get() + i * shares_ld, grad_k.row<float>(i));
      add_shares(shares_v.get() + i * shares_ld, grad_v.row<float>(i));
    }
  });
}

}  // namespace cpu
}  // namespace qst
