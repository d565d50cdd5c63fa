#include "kernels/cpu/norm.h"
#include "kernels/cuda/norm.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// A vector of d floats, or an empty view.
absl::Status CheckOptionalVector(absl::string_view op, absl::string_view name, const ConstMatrixView& v,
                                 std::int64_t d) {
  if (v.empty()) return absl::OkStatus();
  return CheckF32Shape(op, name, v, 1, d);
}

const float* VectorOrNull(const ConstMatrixView& v) { return v.empty() ? nullptr : v.row<float>(0); }
float* VectorOrNull(const MatrixView& v) { return v.empty() ? nullptr : v.row<float>(0); }

}  // namespace

absl::Status RmsNorm(const OpContext& ctx, const ConstMatrixView& x, const ConstMatrixView& weight, float eps,
                     const MatrixView& y, float* inv_rms) {
  constexpr char kOp[] = "RmsNorm";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "weight", weight, 1, x.cols));
  QST_RETURN_IF_ERROR(CheckOutput(kOp, "y", ctx, y, x.rows, x.cols));
  if (x.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::RmsNorm(*ctx.stream, x, weight.row<float>(0), eps, y, inv_rms);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::RmsNorm(exec, x, weight.row<float>(0), eps, y, inv_rms);
  return absl::OkStatus();
}

absl::Status RmsNormBackward(const OpContext& ctx, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                             const ConstMatrixView& weight, const float* inv_rms, const MatrixView& grad_x,
                             const MatrixView& grad_weight, bool accumulate) {
  constexpr char kOp[] = "RmsNormBackward";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_y", grad_y, x.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "weight", weight, 1, x.cols));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "inv_rms", inv_rms, x.rows));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_x", grad_x, x.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckOptionalVector(kOp, "grad_weight", grad_weight, x.cols));
  if (x.empty()) return absl::OkStatus();
  if (is_cuda) {
    return cuda::RmsNormBackward(*ctx.stream, grad_y, x, weight.row<float>(0), inv_rms, grad_x,
                                 VectorOrNull(grad_weight), accumulate);
  }
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::RmsNormBackward(exec, grad_y, x, weight.row<float>(0), inv_rms, grad_x, VectorOrNull(grad_weight), accumulate);
  return absl::OkStatus();
}

absl::Status LayerNorm(const OpContext& ctx, const ConstMatrixView& x, const ConstMatrixView& weight,
                       const ConstMatrixView& bias, float eps, const MatrixView& y, float* mean, float* inv_std) {
  constexpr char kOp[] = "LayerNorm";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckOptionalVector(kOp, "weight", weight, x.cols));
  QST_RETURN_IF_ERROR(CheckOptionalVector(kOp, "bias", bias, x.cols));
  QST_RETURN_IF_ERROR(CheckOutput(kOp, "y", ctx, y, x.rows, x.cols));
  if (x.empty()) return absl::OkStatus();
  if (weight.empty() != bias.empty()) {
    return absl::InvalidArgumentError("LayerNorm: one of weight and bias is empty, need both or neither");
  }
  if (is_cuda) {
    return cuda::LayerNorm(*ctx.stream, x, VectorOrNull(weight), VectorOrNull(bias), eps, y, mean, inv_std);
  }
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::LayerNorm(exec, x, VectorOrNull(weight), VectorOrNull(bias), eps, y, mean, inv_std);
  return absl::OkStatus();
}

absl::Status LayerNormBackward(const OpContext& ctx, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                               const ConstMatrixView& weight, const float* mean, const float* inv_std,
                               const MatrixView& grad_x, const MatrixView& grad_weight, const MatrixView& grad_bias,
                               bool accumulate) {
  constexpr char kOp[] = "LayerNormBackward";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_y", grad_y, x.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckOptionalVector(kOp, "weight", weight, x.cols));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "mean", mean, x.rows));
  QST_RETURN_IF_ERROR(CheckPointer(kOp, "inv_std", inv_std, x.rows));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_x", grad_x, x.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckOptionalVector(kOp, "grad_weight", grad_weight, x.cols));
  QST_RETURN_IF_ERROR(CheckOptionalVector(kOp, "grad_bias", grad_bias, x.cols));
  if (x.empty()) return absl::OkStatus();
  if (is_cuda) {
    return cuda::LayerNormBackward(*ctx.stream, grad_y, x, VectorOrNull(weight), mean, inv_std, grad_x,
                                   VectorOrNull(grad_weight), VectorOrNull(grad_bias), accumulate);
  }
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::LayerNormBackward(exec, grad_y, x, VectorOrNull(weight), mean, inv_std, grad_x, VectorOrNull(grad_weight),
                         VectorOrNull(grad_bias), accumulate);
  return absl::OkStatus();
}

}  // namespace qst
