#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cpu/gemm/linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// The weight is well formed and [rows, cols].
absl::Status CheckWeight(absl::string_view op, const WeightView& w, std::int64_t rows, std::int64_t cols) {
  if (!w.is_quantized) {
    QST_RETURN_IF_ERROR(CheckFloat(op, "w", w.dense));
    return CheckShape(op, "w", w.dense, rows, cols);
  }
  const absl::Status status = CheckQuant4View(w.quant4);
  if (!status.ok()) return Annotate(status, absl::StrCat(op, ": w"));
  if (w.quant4.rows != rows || w.quant4.cols != cols) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": w is [", w.quant4.rows, ", ", w.quant4.cols, "], need [",
                                                   rows, ", ", cols, "]"));
  }
  return absl::OkStatus();
}

const cpu::GemmKernels& KernelsFor(const cpu::Exec& exec) {
  return cpu::GemmKernelsFor(exec.use_avx2 ? CpuIsa::kAvx2 : CpuIsa::kPortable);
}

}  // namespace

absl::Status Linear(const OpContext& ctx, const ConstMatrixView& x, const WeightView& w, const ConstMatrixView& bias,
                    const MatrixView& y, bool accumulate) {
  constexpr absl::string_view kOp = "Linear";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckWeight(kOp, w, y.cols, x.cols));
  QST_RETURN_IF_ERROR(CheckOutput(kOp, "y", ctx, y, x.rows, y.cols));
  if (!bias.empty()) QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "bias", bias, 1, y.cols));
  if (is_cuda) return cuda::Linear(*ctx.stream, x, w, bias, y, accumulate);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::Linear(exec.threads, KernelsFor(exec), x, w, bias, y, accumulate);
  return absl::OkStatus();
}

absl::Status LinearBackwardInput(const OpContext& ctx, const ConstMatrixView& grad_y, const WeightView& w,
                                 const MatrixView& grad_x, bool accumulate) {
  constexpr absl::string_view kOp = "LinearBackwardInput";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckF32(kOp, "grad_y", grad_y));
  QST_RETURN_IF_ERROR(CheckWeight(kOp, w, grad_y.cols, grad_x.cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_x", grad_x, grad_y.rows, grad_x.cols));
  if (is_cuda) return cuda::LinearBackwardInput(*ctx.stream, grad_y, w, grad_x, accumulate);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::LinearBackwardInput(exec.threads, KernelsFor(exec), grad_y, w, grad_x, accumulate);
  return absl::OkStatus();
}

absl::Status LinearBackwardWeight(const OpContext& ctx, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                                  const MatrixView& grad_w, const MatrixView& grad_bias, bool accumulate) {
  constexpr absl::string_view kOp = "LinearBackwardWeight";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckF32(kOp, "grad_y", grad_y));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckShape(kOp, "x", x, grad_y.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_w", grad_w, grad_y.cols, x.cols));
  if (!grad_bias.empty()) QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_bias", grad_bias, 1, grad_y.cols));
  if (is_cuda) return cuda::LinearBackwardWeight(*ctx.stream, grad_y, x, grad_w, grad_bias, accumulate);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::LinearBackwardWeight(exec.threads, KernelsFor(exec), grad_y, x, grad_w, grad_bias, accumulate);
  return absl::OkStatus();
}

}  // namespace qst
