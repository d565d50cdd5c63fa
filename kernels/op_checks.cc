#include "kernels/op_checks.h"

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status CheckLayout(absl::string_view op, absl::string_view name, const ConstMatrixView& m) {
  if (m.rows < 0 || m.cols < 0) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " has negative size [", m.rows, ", ", m.cols, "]"));
  }
  if (m.empty()) return absl::OkStatus();
  if (m.data == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " [", m.rows, ", ", m.cols, "] has no data"));
  }
  if (m.ld < m.cols) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": ", name, " has ld ", m.ld, ", less than its ", m.cols, " columns"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<cpu::Exec> CpuExec(absl::string_view op, const OpContext& ctx) {
  if (ctx.device != DeviceType::kCpu) {
    return absl::UnimplementedError(absl::StrCat(op, ": has no CUDA kernel"));
  }
  if (ctx.threads == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": the context has no thread pool"));
  }
  QST_ASSIGN_OR_RETURN(const CpuIsa isa, ResolveIsa(ctx.isa));
  return cpu::Exec{ctx.threads, isa == CpuIsa::kAvx2};
}

absl::StatusOr<bool> IsCuda(absl::string_view op, const OpContext& ctx) {
  if (ctx.device != DeviceType::kCuda) return false;
  if (ctx.stream == nullptr) return absl::InvalidArgumentError(absl::StrCat(op, ": the context has no CUDA stream"));
  return true;
}

absl::Status CheckOutput(absl::string_view op, absl::string_view name, const OpContext& ctx, const ConstMatrixView& m,
                         std::int64_t rows, std::int64_t cols) {
  return CheckOperand(op, name, ctx, m, rows, cols);
}

absl::Status CheckOperand(absl::string_view op, absl::string_view name, const OpContext& ctx, const ConstMatrixView& m,
                          std::int64_t rows, std::int64_t cols) {
  QST_RETURN_IF_ERROR(ctx.device == DeviceType::kCuda ? CheckFloat(op, name, m) : CheckF32(op, name, m));
  return CheckShape(op, name, m, rows, cols);
}

absl::Status CheckF32(absl::string_view op, absl::string_view name, const ConstMatrixView& m) {
  if (m.dtype != DType::kF32) {
    return absl::UnimplementedError(absl::StrCat(op, ": ", name, " is ", DTypeName(m.dtype), ", need f32"));
  }
  return CheckLayout(op, name, m);
}

absl::Status CheckFloat(absl::string_view op, absl::string_view name, const ConstMatrixView& m) {
  if (m.dtype != DType::kF32 && m.dtype != DType::kF16 && m.dtype != DType::kBF16) {
    return absl::UnimplementedError(
        absl::StrCat(op, ": ", name, " is ", DTypeName(m.dtype), ", need f32, f16 or bf16"));
  }
  return CheckLayout(op, name, m);
}

absl::Status CheckShape(absl::string_view op, absl::string_view name, const ConstMatrixView& m, std::int64_t rows,
                        std::int64_t cols) {
  if (m.rows == rows && m.cols == cols) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(op, ": ", name, " is [", m.rows, ", ", m.cols, "], need [", rows, ", ", cols, "]"));
}

absl::Status CheckF32Shape(absl::string_view op, absl::string_view name, const ConstMatrixView& m, std::int64_t rows,
                           std::int64_t cols) {
  QST_RETURN_IF_ERROR(CheckF32(op, name, m));
  return CheckShape(op, name, m, rows, cols);
}

absl::Status CheckPointer(absl::string_view op, absl::string_view name, const void* pointer, std::int64_t n) {
  if (pointer != nullptr || n == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " is null, need ", n, " elements"));
}

absl::Status CheckOffsets(absl::string_view op, absl::string_view name, const SequenceOffsets& offsets,
                          std::int64_t rows) {
  if (offsets.num < 0) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " has ", offsets.num, " sequences"));
  }
  if (offsets.num == 0) {
    if (rows == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " has no sequences for ", rows, " rows"));
  }
  if (offsets.offsets == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " is null, need ", offsets.num + 1, " entries"));
  }
  if (offsets.offsets[0] != 0) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, "[0] is ", offsets.offsets[0], ", need 0"));
  }
  for (std::int64_t s = 0; s < offsets.num; ++s) {
    if (offsets.offsets[s + 1] < offsets.offsets[s]) {
      return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " falls from ", offsets.offsets[s], " to ",
                                                     offsets.offsets[s + 1], " at sequence ", s));
    }
  }
  if (offsets.offsets[offsets.num] != rows) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": ", name, " ends at ", offsets.offsets[offsets.num], ", need ", rows, " rows"));
  }
  return absl::OkStatus();
}

absl::Status CheckIndices(absl::string_view op, absl::string_view name, const OpContext& ctx,
                          const std::int32_t* indices, std::int64_t n, std::int64_t limit) {
  QST_RETURN_IF_ERROR(CheckPointer(op, name, indices, n));
  if (ctx.device != DeviceType::kCpu) return absl::OkStatus();
  for (std::int64_t i = 0; i < n; ++i) {
    if (indices[i] < 0 || indices[i] >= limit) {
      return absl::InvalidArgumentError(
          absl::StrCat(op, ": ", name, "[", i, "] is ", indices[i], ", outside [0, ", limit, ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace qst
