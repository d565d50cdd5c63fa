#include "absl/strings/str_cat.h"
#include "kernels/cpu/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// An operand [rows, cols]: f32 on CPU; f32, bf16 or f16 on CUDA.
absl::Status CheckOperand(absl::string_view op, absl::string_view name, bool is_cuda, const ConstMatrixView& m,
                          std::int64_t rows, std::int64_t cols) {
  if (!is_cuda) return CheckF32Shape(op, name, m, rows, cols);
  QST_RETURN_IF_ERROR(CheckFloat(op, name, m));
  return CheckShape(op, name, m, rows, cols);
}

// Offsets on CUDA are the device's: only what the host knows is checked.
absl::Status CheckOffsetsOn(absl::string_view op, absl::string_view name, bool is_cuda, const SequenceOffsets& offsets,
                            std::int64_t rows) {
  if (!is_cuda) return CheckOffsets(op, name, offsets, rows);
  if (offsets.num < 0 || (offsets.num == 0 && rows > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": ", name, " has ", offsets.num, " sequences for ", rows, " rows"));
  }
  return CheckPointer(op, name, offsets.offsets, rows);
}

absl::Status CheckAttentionShape(absl::string_view op, const AttentionShape& shape) {
  if (shape.num_heads < 1 || shape.num_kv_heads < 1 || shape.head_dim < 1) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": num_heads ", shape.num_heads, ", num_kv_heads ",
                                                   shape.num_kv_heads, ", head_dim ", shape.head_dim,
                                                   ": each must be at least 1"));
  }
  if (shape.window < 0) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": window is ", shape.window, ", must not be negative"));
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
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckAttentionShape(kOp, shape));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "q", is_cuda, q, q.rows, shape.num_heads * shape.head_dim));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "k", is_cuda, k, k.rows, shape.num_kv_heads * shape.head_dim));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "v", is_cuda, v, k.rows, k.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "out", is_cuda, out, q.rows, q.cols));
  QST_RETURN_IF_ERROR(CheckOffsetsOn(kOp, "q_offsets", is_cuda, q_offsets, q.rows));
  QST_RETURN_IF_ERROR(CheckOffsetsOn(kOp, "k_offsets", is_cuda, k_offsets, k.rows));
  if (q_offsets.num != k_offsets.num) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": ", q_offsets.num, " query sequences, but ", k_offsets.num, " key sequences"));
  }
  if (is_cuda) {
    if (q.empty()) return absl::OkStatus();
    return cuda::Attention(*ctx.stream, shape, q, k, v, q_offsets, k_offsets, out, log_sum_exp);
  }
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
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
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckAttentionShape(kOp, shape));
  if (shape.window != 0) {
    return absl::UnimplementedError(
        absl::StrCat(kOp, ": a window of ", shape.window, " keys; only forward has windows"));
  }
  const std::int64_t rows = q.rows;
  const std::int64_t q_cols = shape.num_heads * shape.head_dim;
  const std::int64_t kv_cols = shape.num_kv_heads * shape.head_dim;
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "q", is_cuda, q, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "k", is_cuda, k, rows, kv_cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "v", is_cuda, v, rows, kv_cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "out", is_cuda, out, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_out", is_cuda, grad_out, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "log_sum_exp", log_sum_exp, rows * shape.num_heads));
  QST_RETURN_IF_ERROR(CheckOffsetsOn(kOp, "offsets", is_cuda, offsets, rows));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_q", is_cuda, grad_q, rows, q_cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_k", is_cuda, grad_k, rows, kv_cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_v", is_cuda, grad_v, rows, kv_cols));
  if (q.empty()) return absl::OkStatus();
  if (is_cuda) {
    return cuda::AttentionBackward(*ctx.stream, shape, grad_out, q, k, v, out, log_sum_exp, offsets, grad_q, grad_k,
                                   grad_v);
  }
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::AttentionBackward(exec, shape, grad_out, q, k, v, out, log_sum_exp, offsets, grad_q, grad_k, grad_v);
  return absl::OkStatus();
}

}  // namespace qst
