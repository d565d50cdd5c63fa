#include "absl/strings/str_cat.h"
#include "kernels/cpu/optimizer.h"
#include "kernels/cuda/optimizer.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status CheckCount(absl::string_view op, std::int64_t n) {
  if (n >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": n is ", n, ", need at least 0"));
}

// A moment's decay; 1 would never forget, and its bias correction divides by 0.
absl::Status CheckBeta(absl::string_view op, absl::string_view name, float beta) {
  if (beta >= 0.0f && beta < 1.0f) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " is ", beta, ", need [0, 1)"));
}

}  // namespace

absl::Status AdamW(const OpContext& ctx, const AdamWParams& params, std::int64_t n, float* param, const float* grad,
                   float* exp_avg, float* exp_avg_sq) {
  constexpr char kOp[] = "AdamW";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckCount(kOp, n));
  QST_RETURN_IF_ERROR(CheckBeta(kOp, "beta1", params.beta1));
  QST_RETURN_IF_ERROR(CheckBeta(kOp, "beta2", params.beta2));
  if (params.step < 1) {
    return absl::InvalidArgumentError(absl::StrCat(kOp, ": step is ", params.step, ", counts from 1"));
  }
  if (!(params.clip_norm >= 0.0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": clip_norm is ", params.clip_norm, ", need at least 0, which stands for no limit"));
  }
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "param", param, n));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "grad", grad, n));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "exp_avg", exp_avg, n));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "exp_avg_sq", exp_avg_sq, n));
  if (n == 0) return absl::OkStatus();
  if (is_cuda) return cuda::AdamW(*ctx.stream, params, n, param, grad, exp_avg, exp_avg_sq);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::AdamW(exec, params, n, param, grad, exp_avg, exp_avg_sq);
  return absl::OkStatus();
}

absl::Status SumOfSquares(const OpContext& ctx, const float* x, std::int64_t n, double* sum) {
  constexpr char kOp[] = "SumOfSquares";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckCount(kOp, n));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "x", x, n));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "sum", sum, 1));
  if (is_cuda) return cuda::SumOfSquares(*ctx.stream, x, n, sum);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  *sum = cpu::SumOfSquares(exec, x, n);
  return absl::OkStatus();
}

}  // namespace qst
