// Causal attention over packed sequences on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_ATTENTION_H_
#define QST_KERNELS_CUDA_ATTENTION_H_

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// Operands f32, bf16 or f16. Heads up to 256 wide; kUnimplemented beyond.
absl::Status Attention(Stream& stream, const AttentionShape& shape, const ConstMatrixView& q, const ConstMatrixView& k,
                       const ConstMatrixView& v, const SequenceOffsets& q_offsets, const SequenceOffsets& k_offsets,
                       const MatrixView& out, float* log_sum_exp);
absl::Status AttentionBackward(Stream& stream, const AttentionShape& shape, const ConstMatrixView& grad_out,
                               const ConstMatrixView& q, const ConstMatrixView& k, const ConstMatrixView& v,
                               const ConstMatrixView& out, const float* log_sum_exp, const SequenceOffsets& offsets,
                               const MatrixView& grad_q, const MatrixView& grad_k, const MatrixView& grad_v);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ATTENTION_H_
