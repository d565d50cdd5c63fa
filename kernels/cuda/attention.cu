#include "kernels/cuda/attention.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention_kernels.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

absl::Status CheckWidth(const AttentionShape& shape) {
  if (shape.head_dim <= kMaxHeadWidth) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("attention on CUDA: heads of ", shape.head_dim, "; at most ",
                                               kMaxHeadWidth, " are supported"));
}

}  // namespace

absl::Status Attention(Stream& stream, const AttentionShape& shape, const ConstMatrixView& q, const ConstMatrixView& k,
                       const ConstMatrixView& v, const SequenceOffsets& q_offsets, const SequenceOffsets& k_offsets,
                       const MatrixView& out, float* log_sum_exp) {
  QST_RETURN_IF_ERROR(CheckWidth(shape));
  const AttentionOperands operands{shape, q, k, v, q_offsets, k_offsets, out, log_sum_exp};
  if (shape.head_dim <= kMaxNarrowWidth) return NarrowAttention(stream, operands);
  return GenericAttention(stream, operands);
}

absl::Status AttentionBackward(Stream& stream, const AttentionShape& shape, const ConstMatrixView& grad_out,
                               const ConstMatrixView& q, const ConstMatrixView& k, const ConstMatrixView& v,
                               const ConstMatrixView& out, const float* log_sum_exp, const SequenceOffsets& offsets,
                               const MatrixView& grad_q, const MatrixView& grad_k, const MatrixView& grad_v) {
  QST_RETURN_IF_ERROR(CheckWidth(shape));
  const AttentionBackwardOperands operands{shape,       grad_out, q,      k,      v,     out,
                                           log_sum_exp, offsets,  grad_q, grad_k, grad_v};
  if (shape.head_dim <= kMaxNarrowWidth) return NarrowAttentionBackward(stream, operands);
  return GenericAttentionBackward(stream, operands);
}

}  // namespace cuda
}  // namespace qst
