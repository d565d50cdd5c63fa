// Checks that the ops share. Messages read "RmsNorm: y is [3, 4], need [3, 8]".
// A shape or pointer that cannot be right is kInvalidArgument; a dtype or device without code, kUnimplemented.
#ifndef QST_KERNELS_OP_CHECKS_H_
#define QST_KERNELS_OP_CHECKS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/cpu/exec.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace qst {

// The CPU backend's view of ctx, with the instruction set resolved. kUnimplemented for another device.
absl::StatusOr<cpu::Exec> CpuExec(absl::string_view op, const OpContext& ctx);
// Whether the op runs on CUDA; kInvalidArgument if the context has no stream then.
absl::StatusOr<bool> IsCuda(absl::string_view op, const OpContext& ctx);

// Sizes not negative, ld >= cols, data not null unless empty, dtype one that the predicate's name says.
absl::Status CheckF32(absl::string_view op, absl::string_view name, const ConstMatrixView& m);
absl::Status CheckFloat(absl::string_view op, absl::string_view name, const ConstMatrixView& m);  // f32, f16, bf16

absl::Status CheckShape(absl::string_view op, absl::string_view name, const ConstMatrixView& m, std::int64_t rows,
                        std::int64_t cols);

// An activation [rows, cols] in a type that the backend of ctx computes with: f32 on CPU; f32, bf16 or f16 on CUDA.
absl::Status CheckOperand(absl::string_view op, absl::string_view name, const OpContext& ctx, const ConstMatrixView& m,
                          std::int64_t rows, std::int64_t cols);
// The same for one that the op writes.
absl::Status CheckOutput(absl::string_view op, absl::string_view name, const OpContext& ctx, const ConstMatrixView& m,
                         std::int64_t rows, std::int64_t cols);

// CheckF32 and CheckShape in one.
absl::Status CheckF32Shape(absl::string_view op, absl::string_view name, const ConstMatrixView& m, std::int64_t rows,
                           std::int64_t cols);

// Not null unless n is 0.
absl::Status CheckPointer(absl::string_view op, absl::string_view name, const void* pointer, std::int64_t n);

// The two below read memory, so they look at values only where the host can: on CPU. On CUDA who uploads checks.

// Offsets start at 0, never fall, and end at `rows`.
absl::Status CheckOffsets(absl::string_view op, absl::string_view name, const SequenceOffsets& offsets,
                          std::int64_t rows);

// Not null unless n is 0; on CPU every index in [0, limit), and the message names the first that is not.
absl::Status CheckIndices(absl::string_view op, absl::string_view name, const OpContext& ctx,
                          const std::int32_t* indices, std::int64_t n, std::int64_t limit);

}  // namespace qst

#endif  // QST_KERNELS_OP_CHECKS_H_
