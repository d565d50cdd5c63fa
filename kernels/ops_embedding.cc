#include "kernels/cpu/embedding.h"
#include "kernels/cuda/embedding.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::Status EmbeddingLookup(const OpContext& ctx, const std::int32_t* tokens, std::int64_t num_tokens,
                             const ConstMatrixView& table, const std::int32_t* positions,
                             const ConstMatrixView& positions_table, const MatrixView& y) {
  constexpr char kOp[] = "EmbeddingLookup";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  if (num_tokens < 0) return absl::InvalidArgumentError("EmbeddingLookup: num_tokens is negative");
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "table", table));
  QST_RETURN_IF_ERROR(CheckOutput(kOp, "y", ctx, y, num_tokens, table.cols));
  QST_RETURN_IF_ERROR(CheckIndices(kOp, "tokens", ctx, tokens, num_tokens, table.rows));
  if (!positions_table.empty()) {
    QST_RETURN_IF_ERROR(CheckFloat(kOp, "positions_table", positions_table));
    QST_RETURN_IF_ERROR(CheckShape(kOp, "positions_table", positions_table, positions_table.rows, table.cols));
    QST_RETURN_IF_ERROR(CheckIndices(kOp, "positions", ctx, positions, num_tokens, positions_table.rows));
  }
  if (y.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::EmbeddingLookup(*ctx.stream, tokens, table, positions, positions_table, y);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::EmbeddingLookup(exec, tokens, table, positions, positions_table, y);
  return absl::OkStatus();
}

}  // namespace qst
