// Panels of B from a weight of any kind.
#ifndef QST_KERNELS_CPU_GEMM_PACK_RIGHT_H_
#define QST_KERNELS_CPU_GEMM_PACK_RIGHT_H_

#include <cstdint>

#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cpu/gemm/kernels.h"

namespace qst {
namespace cpu {

// Blocks of k start at multiples of this (elements), which keeps 4-bit unpacking on its fast path.
inline constexpr std::int64_t kDepthUnit = 64;

// Writes rows [k_begin, k_end), columns [col, col + cols) of B as one right panel:
// out[(kk - k_begin) * nr + j], zero for j in [cols, nr). k_begin is a multiple of kDepthUnit, col of nr.
void PackRight(const GemmKernels& kernels, const RightOperand& right, std::int64_t k_begin, std::int64_t k_end,
               std::int64_t col, int cols, float* out);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_GEMM_PACK_RIGHT_H_
