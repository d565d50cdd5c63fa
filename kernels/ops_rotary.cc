#include "absl/strings/str_cat.h"
#include "kernels/cpu/rotary.h"
#include "kernels/cuda/rotary.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::Status Rotary(const OpContext& ctx, const MatrixView& x, std::int64_t num_heads, const std::int32_t* positions,
                    const float* inv_freq, bool inverse) {
  constexpr char kOp[] = "Rotary";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "x", ctx, x, x.rows, x.cols));
  if (num_heads < 1 || x.cols % (2 * num_heads) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": ", x.cols, " columns do not split into ", num_heads, " heads of even width"));
  }
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "positions", positions, x.rows));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "inv_freq", inv_freq, x.cols / num_heads / 2));
  if (x.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::Rotary(*ctx.stream, x, num_heads, positions, inv_freq, inverse);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::Rotary(exec, x, num_heads, positions, inv_freq, inverse);
  return absl::OkStatus();
}

}  // namespace qst
