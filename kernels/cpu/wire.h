// Rows with a scale each, on CPU. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_WIRE_H_
#define QST_KERNELS_CPU_WIRE_H_

#include "kernels/cpu/exec.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

// wire is i8 or f8_e4m3.
void EncodeRows(const Exec& exec, const ConstMatrixView& x, DType wire, void* out);
void DecodeRows(const Exec& exec, const void* in, DType wire, const MatrixView& y);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_WIRE_H_
