#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/wire.h"
#include "kernels/cuda/wire.h"
#include "kernels/op_checks.h"
#include "kernels/ops.h"
#include "kernels/wire_rows.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status CheckWire(absl::string_view op, DType wire, const void* data, std::int64_t num_bytes) {
  if (!IsWireDtype(wire)) {
    return absl::UnimplementedError(
        absl::StrCat(op, ": rows do not travel as ", DTypeName(wire), ", need bf16, f32, i8 or f8_e4m3"));
  }
  QST_RETURN_IF_ERROR(CheckPointer(op, "wire", data, num_bytes));
  if (reinterpret_cast<std::uintptr_t>(data) % kWireAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": wire memory is not aligned to ", kWireAlignment, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status EncodeRows(const OpContext& ctx, const ConstMatrixView& x, DType wire, void* out) {
  constexpr char kOp[] = "EncodeRows";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "x", x));
  QST_RETURN_IF_ERROR(CheckWire(kOp, wire, out, WireBytes(wire, x.rows, x.cols)));
  if (!HasRowScales(wire)) {
    return AddInto(ctx, x, MatrixView{out, wire, x.rows, x.cols, x.cols}, /*accumulate=*/false);
  }
  if (x.rows == 0) return absl::OkStatus();
  if (is_cuda) return cuda::EncodeRows(*ctx.stream, x, wire, out);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::EncodeRows(exec, x, wire, out);
  return absl::OkStatus();
}

absl::Status DecodeRows(const OpContext& ctx, const void* in, DType wire, const MatrixView& y) {
  constexpr char kOp[] = "DecodeRows";
  QST_ASSIGN_OR_RETURN(const bool is_cuda, IsCuda(kOp, ctx));
  QST_RETURN_IF_ERROR(CheckFloat(kOp, "y", y));
  QST_RETURN_IF_ERROR(CheckWire(kOp, wire, in, WireBytes(wire, y.rows, y.cols)));
  if (!HasRowScales(wire)) {
    return AddInto(ctx, ConstMatrixView(in, wire, y.rows, y.cols, y.cols), y, /*accumulate=*/false);
  }
  if (y.empty()) return absl::OkStatus();
  if (is_cuda) return cuda::DecodeRows(*ctx.stream, in, wire, y);
  QST_ASSIGN_OR_RETURN(const cpu::Exec exec, CpuExec(kOp, ctx));
  cpu::DecodeRows(exec, in, wire, y);
  return absl::OkStatus();
}

}  // namespace qst
