#include "absl/strings/str_cat.h"
#include "kernels/cpu/attention.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status CheckAttentionShape(absl::string_view op, const AttentionShape& shape) {
  if (shape.num_heads < 1 || shape.num_kv_heads < 1 || shape.head_dim < 1) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": num_heads ", shape.num_heads, ", num_kv_heads ",
                                                   shape.num_kv_heads, ", head_dim ", shape.head_dim,
                                                   ": each must be at least 1"));
  }
  if (shape.num_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": num_kv_heads ", shape.num_kv_heads, " does not divide num_heads ", shape.num_heads));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Attention(const OpContext& ctx, const AttentionShape& shape, const ConstMatrixView& q,
                       const ConstMatrixView& k, const ConstMatrixView& v, const SequenceOffsets& q_offsets,
                       const SequenceOffsets& k_offsets, const MatrixView& out, float* log_sum_exp) {
  constexpr char kOp[] = "Attention";
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckAttentionShape(kOp, shape));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "q", q, q.rows, shape.num_heads * shape.head_dim));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "k", k, k.rows, shape.num_kv_heads * shape.head_dim));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "v", v, k.rows, k.cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "out", out, q.rows, q.cols));
  QST_RETURN_IF_ERROR(CheckOffsets(kOp, "q_offsets", q_offsets, q.rows));
  QST_RETURN_IF_ERROR(CheckOffsets(kOp, "k_offsets", k_offsets, k.rows));
  if (q_offsets.num != k_offsets.num) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": ", q_offsets.num, " query sequences, but ", k_offsets.num, " key sequences"));
  }
  for (std::int64_t s = 0; s < q_offsets.num; ++s) {
    const std::int64_t num_queries = q_offsets.offsets[s + 1] - q_offsets.offsets[s];
    const std::int64_t num_keys = k_offsets.offsets[s + 1] - k_offsets.offsets[s];
    if (num_keys < num_queries) {
      return absl::InvalidArgumentError(
          absl::StrCat(kOp, ": sequence ", s, " has ", num_queries, " queries, but only ", num_keys, " keys"));
    }
  }
  if (!q.empty()) cpu::Attention(exec, shape, q, k, v, q_offsets, k_offsets, out, log_sum_exp);
  return absl::OkStatus();
}

absl::Status AttentionBackward(const OpContext& ctx, const AttentionShape& shape, const ConstMatrixView& grad_out,
                               const ConstMatrixView& q, const ConstMatrixView& k, const ConstMatrixView& v,
                               const ConstMatrixView& out, const float* log_sum_exp, const SequenceOffsets& offsets,
                               const MatrixView& grad_q, const MatrixView& grad_k, const MatrixView& grad_v) {
  constexpr char kOp[] = "AttentionBackward";
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckAttentionShape(kOp, shape));
  const std::int64_t rows = q.rows;
  const std::int64_t q_cols = shape.num_heads * shape.head_dim;
  const std::int64_t kv_cols = shape.num_kv_heads * shape.head_dim;
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "q", q, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "k", k, rows, kv_cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "v", v, rows, kv_cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "out", out, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_out", grad_out, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "log_sum_exp", log_sum_exp, rows * shape.num_heads));
  QST_RETURN_IF_ERROR(CheckOffsets(kOp, "offsets", offsets, rows));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_q", grad_q, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_k", grad_k, rows, kv_cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_v", grad_v, rows, kv_cols));
  if (!q.empty()) {
    cpu::AttentionBackward(exec, shape, grad_out, q, k, v, out, log_sum_exp, offsets, grad_q, grad_k, grad_v);
  }
  return absl::OkStatus();
}

}  // namespace qst
