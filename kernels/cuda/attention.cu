#include "kernels/cuda/attention.h"

#include <cstdint>

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

// Kernels count rows, and elements of a row, in 32 bits.
absl::Status CheckCounts(const AttentionShape& shape, std::int64_t num_queries, std::int64_t num_keys) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  if (num_queries * shape.num_heads < kLimit && num_keys * shape.num_heads < kLimit) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("attention on CUDA: ", num_queries, " queries and ", num_keys,
                                               " keys of ", shape.num_heads, " heads at once; use fewer tokens a pass"));
}

// Whether rows of a head are whole pieces of 16 bytes, at multiples of 16.
bool IsWide(const ConstMatrixView& m, std::int64_t head_dim) {
  constexpr std::int64_t kBytes = 16;
  const std::int64_t element = DTypeBytes(m.dtype);
  return reinterpret_cast<std::uintptr_t>(m.data) % kBytes == 0 && m.ld * element % kBytes == 0 &&
         head_dim * element % kBytes == 0;
}

bool FitsTensorCores(const AttentionOperands& x) {
  const DType dtype = x.q.dtype;
  if (dtype == DType::kF32 || x.k.dtype != dtype || x.v.dtype != dtype) return false;
  if (x.out.dtype != DType::kF32 && x.out.dtype != dtype) return false;
  const std::int64_t width = x.shape.head_dim;
  return x.shape.scale > 0.0f && IsWide(x.q, width) && IsWide(x.k, width) && IsWide(x.v, width) && IsWide(x.out, width);
}

}  // namespace

absl::Status Attention(Stream& stream, const AttentionShape& shape, const ConstMatrixView& q, const ConstMatrixView& k,
                       const ConstMatrixView& v, const SequenceOffsets& q_offsets, const SequenceOffsets& k_offsets,
                       const MatrixView& out, float* log_sum_exp) {
  QST_RETURN_IF_ERROR(CheckWidth(shape));
  QST_RETURN_IF_ERROR(CheckCounts(shape, q.rows, k.rows));
  const AttentionOperands operands{shape, q, k, v, q_offsets, k_offsets, out, log_sum_exp};
  if (shape.head_dim <= kMaxNarrowWidth) return NarrowAttention(stream, operands);
  return FitsTensorCores(operands) ? WideAttention(stream, operands) : GenericAttention(stream, operands);
}

absl::Status AttentionBackward(Stream& stream, const AttentionShape& shape, const ConstMatrixView& grad_out,
                               const ConstMatrixView& q, const ConstMatrixView& k, const ConstMatrixView& v,
                               const ConstMatrixView& out, const float* log_sum_exp, const SequenceOffsets& offsets,
                               const MatrixView& grad_q, const MatrixView& grad_k, const MatrixView& grad_v) {
  QST_RETURN_IF_ERROR(CheckWidth(shape));
  QST_RETURN_IF_ERROR(CheckCounts(shape, q.rows, k.rows));
  const AttentionBackwardOperands operands{shape,       grad_out, q,      k,      v,     out,
                                           log_sum_exp, offsets,  grad_q, grad_k, grad_v};
  if (shape.head_dim <= kMaxNarrowWidth) return NarrowAttentionBackward(stream, operands);
  return GenericAttentionBackward(stream, operands);
}

}  // namespace cuda
}  // namespace qst
