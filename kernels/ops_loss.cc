#include "absl/strings/str_cat.h"
#include "kernels/cpu/loss.h"
#include "kernels/cuda/loss.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::Status CrossEntropy(const OpContext& ctx, const MatrixView& logits, const std::int32_t* targets, float scale,
                          bool want_grad, float* losses, std::int32_t* argmax) {
  constexpr char kOp[] = "CrossEntropy";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckF32(kOp, "logits", logits));
  QST_RETURN_IF_ERROR(CheckIndices(kOp, "targets", ctx, targets, logits.rows, logits.cols));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "losses", losses, logits.rows));
  if (logits.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::CrossEntropy(*ctx.stream, logits, targets, scale, want_grad, losses, argmax);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::CrossEntropy(exec, logits, targets, scale, want_grad, losses, argmax);
  return absl::OkStatus();
}

absl::Status SquaredError(const OpContext& ctx, const MatrixView& predictions, const float* targets, float scale,
                          bool want_grad, float* losses) {
  constexpr char kOp[] = "SquaredError";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckF32(kOp, "predictions", predictions));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "targets", targets, predictions.rows));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "losses", losses, predictions.rows));
  if (predictions.rows > 0 && predictions.cols != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": predictions are [", predictions.rows, ", ", predictions.cols, "], need one column"));
  }
  if (predictions.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::SquaredError(*ctx.stream, predictions, targets, scale, want_grad, losses);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::SquaredError(exec, predictions, targets, scale, want_grad, losses);
  return absl::OkStatus();
}

}  // namespace qst
