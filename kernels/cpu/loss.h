// Softmax cross-entropy on CPU. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_LOSS_H_
#define QST_KERNELS_CPU_LOSS_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

// argmax may be null.
void CrossEntropy(const Exec& exec, const MatrixView& logits, const std::int32_t* targets, float scale,
                  bool want_grad, float* losses, std::int32_t* argmax);

// n >= 1 values of one row, in two instruction sets.
#define QST_LOSS_ROW_KERNELS                                                                               \
  float MaxOfRow(const float* x, std::int64_t n);                                                          \
  /* The first index with x[i] == value, or 0 if there is none (NaN). */                                   \
  std::int64_t FirstIndexOf(float value, const float* x, std::int64_t n);                                  \
  /* Sum of exp(x - max). If `keep`, x receives the summands. */                                           \
  double SumOfExp(float* x, std::int64_t n, float max, bool keep);                                         \
  void ScaleRow(float factor, std::int64_t n, float* x);

namespace portable {
QST_LOSS_ROW_KERNELS
}  // namespace portable
namespace avx2 {
QST_LOSS_ROW_KERNELS
}  // namespace avx2
#undef QST_LOSS_ROW_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_LOSS_H_
