// Causal attention over packed sequences on CPU. Arguments as in kernels/ops.h, already checked.
//
// Keys are taken in blocks of kKeyBlock, counted from the start of their sequence, and every query row keeps
// its own running maximum and sums. So a row's bits depend on its own keys alone: neither on the rows
// beside it, nor on its sequence's place in the batch, nor on whether it came in a prefill or one by one
// over a KV cache.
#ifndef QST_KERNELS_CPU_ATTENTION_H_
#define QST_KERNELS_CPU_ATTENTION_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

void Attention(const Exec& exec, const AttentionShape& shape, const ConstMatrixView& q, const ConstMatrixView& k,
               const ConstMatrixView& v, const SequenceOffsets& q_offsets, const SequenceOffsets& k_offsets,
               const MatrixView& out, float* log_sum_exp);

void AttentionBackward(const Exec& exec, const AttentionShape& shape, const ConstMatrixView& grad_out,
                       const ConstMatrixView& q, const ConstMatrixView& k, const ConstMatrixView& v,
                       const ConstMatrixView& out, const float* log_sum_exp, const SequenceOffsets& offsets,
                       const MatrixView& grad_q, const MatrixView& grad_k, const MatrixView& grad_v);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ATTENTION_H_
