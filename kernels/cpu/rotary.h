// Rotary embedding on CPU. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_ROTARY_H_
#define QST_KERNELS_CPU_ROTARY_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

void Rotary(const Exec& exec, const MatrixView& x, std::int64_t num_heads, const std::int32_t* positions,
            const float* inv_freq, bool inverse);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_ROTARY_H_
