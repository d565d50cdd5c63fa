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
void ActivateBackward(const Exec& exec, Activation activation, const ConstMatrixView& grad_y,
                      const ConstMatrixView& x, const MatrixView& grad_x);
void SwiGlu(const Exec& exec, const ConstMatrixView& gate, const ConstMatrixView& up, const MatrixView& y);
void SwiGluBackward(const Exec& exec, const ConstMatrixView& grad_y, const ConstMatrixView& gate,
                    const ConstMatrixView& up, const MatrixView& grad_gate, const MatrixView& grad_up);
void GateMix(const Exec& exec, const ConstMatrixView& a, const ConstMatrixView& b, const ConstMatrixView& mix,
             bool apply_sigmoid, const MatrixView& out);
void GateMixBackward(const Exec& exec, const ConstMatrixView& grad_out, const ConstMatrixView& a,
                     const ConstMatrixView& b, const ConstMatrixView& mix, bool apply_sigmoid,
                     const MatrixView& grad_a, const MatrixView& grad_b, const MatrixView& grad_mix);
void AddInto(const Exec& exec, const ConstMatrixView& x, const MatrixView& y, bool accumulate);
void GatherRows(const Exec& exec, const ConstMatrixView& x, const std::int32_t* indices, const MatrixView& y);
void ScatterAddRows(const Exec& exec, const ConstMatrixView& grad_y, const std::int32_t* indices,
                    const MatrixView& grad_x);
void PoolColumns(const Exec& exec, Pooling pooling, const ConstMatrixView& x, const MatrixView& y);

// n consecutive elements, in two instruction sets. Outputs may be any of the inputs of the same call.
#define QST_ELEMENTWISE_ROW_KERNELS                                                                                  \
  void ReluRow(const float* x, std::int64_t n, float* y);                                                            \
  void SiluRow(const float* x, std::int64_t n, float* y);                                                            \
  void ReluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x);                          \
  void SiluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x);                          \
  void SwiGluRow(const float* gate, const float* up, std::int64_t n, float* y);                                      \
  void SwiGluBackwardRow(const float* grad_y, const float* gate, const float* up, std::int64_t n, float* grad_gate,  \
                         float* grad_up);                                                                            \
  void GateMixRow(const float* a, const float* b, const float* mix, std::int64_t n, float* out);                     \
  /* grad_a, grad_b and mix_sum (+= grad_out * (b - a)) may be null; a and b may be if mix_sum is. */                \
  void GateMixBackwardRow(const float* grad_out, const float* a, const float* b, const float* mix, std::int64_t n,   \
                          float* grad_a, float* grad_b, float* mix_sum);                                             \
  void AddRow(const float* x, std::int64_t n, float* y); /* y += x */

namespace portable {
QST_ELEMENTWISE_ROW_KERNELS
}  // namespace portable
namespace avx2 {
QST_ELEMENTWISE_ROW_KERNELS
}  // namespace avx2
#undef QST_ELEMENTWISE_ROW_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ELEMENTWISE_H_
