// Losses on CPU: softmax cross-entropy, squared error. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_LOSS_H_
#define QST_KERNELS_CPU_LOSS_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

// argmax may be null.
void CrossEntropy(const Exec& exec, const MatrixView& logits, const std::int32_t* targets, float scale, bool want_grad,
                  float* losses, std::int32_t* argmax);

// One column.
void SquaredError(const Exec& exec, const MatrixView& predictions, const float* targets, float scale, bool want_grad,
                  float* losses);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_LOSS_H_
