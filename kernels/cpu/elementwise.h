// Elementwise and row-moving ops on CPU. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_ELEMENTWISE_H_
#define QST_KERNELS_CPU_ELEMENTWISE_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

void Activate(const Exec& exec, Activation activation, const ConstMatrixView& x, const MatrixView& y);
void ActivateBackward(const Exec& exec, Activation activation, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                      const MatrixView& grad_x);
void SwiGlu(const Exec& exec, const ConstMatrixView& gate, const ConstMatrixView& up, const MatrixView& y);
void SwiGluBackward(const Exec& exec, const ConstMatrixView& grad_y, const ConstMatrixView& gate,
                    const ConstMatrixView& up, const MatrixView& grad_gate, const MatrixView& grad_up);
void GateMix(const Exec& exec, const ConstMatrixView& a, const ConstMatrixView& b, const ConstMatrixView& mix,
             bool apply_sigmoid, const MatrixView& out);
void GateMixBackward(const Exec& exec, const ConstMatrixView& grad_out, const ConstMatrixView& a,
                     const ConstMatrixView& b, const ConstMatrixView& mix, bool apply_sigmoid, const MatrixView& grad_a,
                     const MatrixView& grad_b, const MatrixView& grad_mix);
void AddInto(const Exec& exec, const ConstMatrixView& x, const MatrixView& y, bool accumulate);
void GatherRows(const Exec& exec, const ConstMatrixView& x, const std::int32_t* indices, const MatrixView& y);
void ScatterAddRows(const Exec& exec, const ConstMatrixView& grad_y, const std::int32_t* indices,
                    const MatrixView& grad_x);
void PoolColumns(const Exec& exec, Pooling pooling, const ConstMatrixView& x, const MatrixView& y);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ELEMENTWISE_H_
