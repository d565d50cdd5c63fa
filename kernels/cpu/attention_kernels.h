// Attention kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_ATTENTION_KERNELS_H_
#define QST_KERNELS_CPU_ATTENTION_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

constexpr std::int64_t kKeyBlock = 64;

// Forward work of one thread: a run of query positions of one sequence, for the query heads that share one
// key-value head. Row (position i, head h) of q lies at q + i * q_ld + h * head_dim, and so for out and
// log_sum_exp (width 1); key j of the sequence at k + j * k_ld.
struct AttentionTask {
  const float* q;
  std::int64_t q_ld;
  const float* k;
  std::int64_t k_ld;
  const float* v;
  std::int64_t v_ld;
  float* out;
  std::int64_t out_ld;
  float* log_sum_exp;  // may be null
  std::int64_t log_sum_exp_ld;
  std::int64_t num_positions;
  std::int64_t num_keys;  // that position 0 sees; each further position sees one more
  std::int64_t group;     // query heads in the task
  std::int64_t head_dim;
  float scale;
  std::int64_t window;  // the last so many of these keys are seen; 0: all
};

// Backward work of one thread: one query head of one sequence. Pointers are to row 0 of the sequence.
// Overwrites the three gradients; grad_k and grad_v are this query head's share.
struct AttentionBackwardTask {
  const float* grad_out;
  std::int64_t grad_out_ld;
  const float* q;
  std::int64_t q_ld;
  const float* k;
  std::int64_t k_ld;
  const float* v;
  std::int64_t v_ld;
  const float* out;
  std::int64_t out_ld;
  const float* log_sum_exp;
  std::int64_t log_sum_exp_ld;
  float* grad_q;
  std::int64_t grad_q_ld;
  float* grad_k;
  std::int64_t grad_k_ld;
  float* grad_v;
  std::int64_t grad_v_ld;
  std::int64_t length;
  std::int64_t head_dim;
  float scale;
};

// scratch has as many floats as the function beside says, aligned to 32 bytes.
#define QST_ATTENTION_KERNELS                                                        \
  std::int64_t AttentionScratch(std::int64_t num_rows, std::int64_t head_dim);       \
  void RunAttention(const AttentionTask& task, float* scratch);                      \
  std::int64_t AttentionBackwardScratch(std::int64_t length, std::int64_t head_dim); \
  void RunAttentionBackward(const AttentionBackwardTask& task, float* scratch);

namespace portable {
QST_ATTENTION_KERNELS
}  // namespace portable
namespace avx2 {
QST_ATTENTION_KERNELS

// RunAttentionBackward for heads wider than this, as products of tiles.
constexpr std::int64_t kWidestNarrowBackward = 8;
std::int64_t WideAttentionBackwardScratch(std::int64_t length, std::int64_t head_dim);
void RunWideAttentionBackward(const AttentionBackwardTask& task, float* scratch);
}  // namespace avx2
#undef QST_ATTENTION_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ATTENTION_KERNELS_H_
