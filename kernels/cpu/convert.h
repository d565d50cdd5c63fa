// Rows of any float dtype as float32, and back.
#ifndef QST_KERNELS_CPU_CONVERT_H_
#define QST_KERNELS_CPU_CONVERT_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

// Row i of m (f32, f16 or bf16) in float32: m's own memory if it is f32, else `scratch` [m.cols].
const float* RowAsF32(const Exec& exec, const ConstMatrixView& m, std::int64_t i, float* scratch);

// out[n] = values of dtype (f32, f16 or bf16) at `in`.
void ToF32(const Exec& exec, DType dtype, const void* in, std::int64_t n, float* out);
// The reverse, rounding to nearest even.
void FromF32(const Exec& exec, DType dtype, const float* in, std::int64_t n, void* out);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_CONVERT_H_
