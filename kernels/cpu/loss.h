// Softmax cross-entropy on CPU. Arguments as in kernels/ops.h, already checked.
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

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_LOSS_H_
