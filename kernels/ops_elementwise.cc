#include "absl/strings/str_cat.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status CheckActivation(absl::string_view op, Activation activation) {
  switch (activation) {
    case Activation::kIdentity:
    case Activation::kRelu:
    case Activation::kSilu:
    case Activation::kGelu:
      return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(op, ": unknown activation ", static_cast<int>(activation)));
}

// mix is [1, 1] or [1, cols].
absl::Status CheckMix(absl::string_view op, absl::string_view name, const ConstMatrixView& mix, std::int64_t cols) {
  return CheckF32Shape(op, name, mix, 1, mix.cols == 1 ? 1 : cols);
}

}  // namespace

absl::Status Activate(const OpContext& ctx, Activation activation, const ConstMatrixView& x, const MatrixView& y) {
  constexpr char kOp[] = "Activate";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckActivation(kOp, activation));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "x", ctx, x, x.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "y", ctx, y, x.rows, x.cols));
  if (x.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::Activate(*ctx.stream, activation, x, y);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::Activate(exec, activation, x, y);
  return absl::OkStatus();
}

absl::Status ActivateBackward(const OpContext& ctx, Activation activation, const ConstMatrixView& grad_y,
                              const ConstMatrixView& x, const MatrixView& grad_x) {
  constexpr char kOp[] = "ActivateBackward";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckActivation(kOp, activation));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "x", ctx, x, x.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_y", ctx, grad_y, x.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_x", ctx, grad_x, x.rows, x.cols));
  if (x.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::ActivateBackward(*ctx.stream, activation, grad_y, x, grad_x);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::ActivateBackward(exec, activation, grad_y, x, grad_x);
  return absl::OkStatus();
}

absl::Status SwiGlu(const OpContext& ctx, const ConstMatrixView& gate, const ConstMatrixView& up, const MatrixView& y) {
  constexpr char kOp[] = "SwiGlu";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "gate", ctx, gate, gate.rows, gate.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "up", ctx, up, gate.rows, gate.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "y", ctx, y, gate.rows, gate.cols));
  if (gate.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::SwiGlu(*ctx.stream, gate, up, y);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::SwiGlu(exec, gate, up, y);
  return absl::OkStatus();
}

absl::Status SwiGluBackward(const OpContext& ctx, const ConstMatrixView& grad_y, const ConstMatrixView& gate,
                            const ConstMatrixView& up, const MatrixView& grad_gate, const MatrixView& grad_up) {
  constexpr char kOp[] = "SwiGluBackward";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "gate", ctx, gate, gate.rows, gate.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "up", ctx, up, gate.rows, gate.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_y", ctx, grad_y, gate.rows, gate.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_gate", ctx, grad_gate, gate.rows, gate.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "grad_up", ctx, grad_up, gate.rows, gate.cols));
  if (gate.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::SwiGluBackward(*ctx.stream, grad_y, gate, up, grad_gate, grad_up);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::SwiGluBackward(exec, grad_y, gate, up, grad_gate, grad_up);
  return absl::OkStatus();
}

absl::Status GateMix(const OpContext& ctx, const ConstMatrixView& a, const ConstMatrixView& b,
                     const ConstMatrixView& mix, bool apply_sigmoid, const MatrixView& out) {
  constexpr char kOp[] = "GateMix";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "a", ctx, a, a.rows, a.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "b", ctx, b, a.rows, a.cols));
  QST_RETURN_IF_ERROR(CheckMix(kOp, "mix", mix, a.cols));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "out", ctx, out, a.rows, a.cols));
  if (a.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::GateMix(*ctx.stream, a, b, mix, apply_sigmoid, out);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::GateMix(exec, a, b, mix, apply_sigmoid, out);
  return absl::OkStatus();
}

absl::Status GateMixBackward(const OpContext& ctx, const ConstMatrixView& grad_out, const ConstMatrixView& a,
                             const ConstMatrixView& b, const ConstMatrixView& mix, bool apply_sigmoid,
                             const MatrixView& grad_a, const MatrixView& grad_b, const MatrixView& grad_mix) {
  constexpr char kOp[] = "GateMixBackward";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  const std::int64_t rows = grad_out.rows;
  const std::int64_t cols = grad_out.cols;
  QST_RETURN_IF_ERROR(CheckF32(kOp, "grad_out", grad_out));
  QST_RETURN_IF_ERROR(CheckMix(kOp, "mix", mix, cols));
  if (!grad_mix.empty()) {
    QST_RETURN_IF_ERROR(CheckOperand(kOp, "a", ctx, a, rows, cols));
    QST_RETURN_IF_ERROR(CheckOperand(kOp, "b", ctx, b, rows, cols));
    QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_mix", grad_mix, 1, mix.cols));
  }
  if (!grad_a.empty()) QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_a", grad_a, rows, cols));
  if (!grad_b.empty()) QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_b", grad_b, rows, cols));
  if (grad_out.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::GateMixBackward(*ctx.stream, grad_out, a, b, mix, apply_sigmoid, grad_a, grad_b, grad_mix);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::GateMixBackward(exec, grad_out, a, b, mix, apply_sigmoid, grad_a, grad_b, grad_mix);
  return absl::OkStatus();
}

absl::Status AddInto(const OpContext& ctx, const ConstMatrixView& x, const MatrixView& y, bool accumulate) {
  constexpr char kOp[] = "AddInto";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "y", y));
  QST_RETURN_IF_ERROR(CheckShape(kOp, "y", y, x.rows, x.cols));
  if (x.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::AddInto(*ctx.stream, x, y, accumulate);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::AddInto(exec, x, y, accumulate);
  return absl::OkStatus();
}

absl::Status GatherRows(const OpContext& ctx, const ConstMatrixView& x, const std::int32_t* indices,
                        const MatrixView& y) {
  constexpr char kOp[] = "GatherRows";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "y", ctx, y, y.rows, x.cols));
  QST_RETURN_IF_ERROR(CheckIndices(kOp, "indices", ctx, indices, y.rows, x.rows));
  if (y.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::GatherRows(*ctx.stream, x, indices, y);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::GatherRows(exec, x, indices, y);
  return absl::OkStatus();
}

absl::Status ScatterAddRows(const OpContext& ctx, const ConstMatrixView& grad_y, const std::int32_t* indices,
                            const MatrixView& grad_x) {
  constexpr char kOp[] = "ScatterAddRows";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckF32(kOp, "grad_x", grad_x));
  QST_RETURN_IF_ERROR(CheckF32Shape(kOp, "grad_y", grad_y, grad_y.rows, grad_x.cols));
  QST_RETURN_IF_ERROR(CheckIndices(kOp, "indices", ctx, indices, grad_y.rows, grad_x.rows));
  if (grad_y.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::ScatterAddRows(*ctx.stream, grad_y, indices, grad_x);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::ScatterAddRows(exec, grad_y, indices, grad_x);
  return absl::OkStatus();
}

absl::Status PoolColumns(const OpContext& ctx, Pooling pooling, const ConstMatrixView& x, const MatrixView& y) {
  constexpr char kOp[] = "PoolColumns";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckOperand(kOp, "y", ctx, y, x.rows, y.cols));
  if (pooling != Pooling::kMax && pooling != Pooling::kAverage) {
    return absl::InvalidArgumentError(absl::StrCat(kOp, ": unknown pooling ", static_cast<int>(pooling)));
  }
  if (y.cols > x.cols) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": y has ", y.cols, " columns, more than the ", x.cols, " of x"));
  }
  if (y.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::PoolColumns(*ctx.stream, pooling, x, y);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::PoolColumns(exec, pooling, x, y);
  return absl::OkStatus();
}

}  // namespace qst
