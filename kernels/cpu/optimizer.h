// AdamW and the sum of squares on CPU. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_OPTIMIZER_H_
#define QST_KERNELS_CPU_OPTIMIZER_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/ops.h"

namespace qst {
namespace cpu {

void AdamW(const Exec& exec, const AdamWParams& params, std::int64_t n, float* param, const float* grad, float* exp_avg,
           float* exp_avg_sq);
double SumOfSquares(const Exec& exec, const float* x, std::int64_t n);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_OPTIMIZER_H_
