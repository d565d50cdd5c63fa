// The matrix product behind all linear ops, from the tiles of kernels.h.
//
// Work is cut by columns of C. A task unpacks its columns of B, one block of k at a time, into a buffer that
// stays in the second-level cache, and multiplies all rows of A with it; so every weight is unpacked once,
// by the thread that uses it, and is never held whole. A is read where it lies; 16-bit rows are converted
// first, by the task if it is one of few, else once for all tasks.
#ifndef QST_KERNELS_CPU_GEMM_GEMM_H_
#define QST_KERNELS_CPU_GEMM_GEMM_H_

#include <cstdint>

#include "kernels/cpu/gemm/kernels.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

// A [m, k] as it lies in memory: `matrix` is A itself (f32, f16 or bf16), or A^T (f32) if is_transposed.
struct LeftOperand {
  ConstMatrixView matrix;
  bool is_transposed = false;
};

// B [k, n]: `weight` is B itself, or B^T if is_transposed.
struct RightOperand {
  WeightView weight;
  bool is_transposed = false;
};

// C[m, n] = (C if accumulate, else 0) + bias[n] (unless null) + A B.
// How an element's terms are added up does not depend on m, n or threads (kernels.h). With a transposed A it is one
// chain over ascending k that starts with the first two terms: cutting k into accumulating calls changes no bit either.
// Nothing is checked; sizes come from C and from A.
void Gemm(ThreadPool* threads, const GemmKernels& kernels, const LeftOperand& left, const RightOperand& right,
          const float* bias, const MatrixView& c, bool accumulate);

// The set to use for a resolved instruction set: for kAvx2 the AVX-512 one where the machine has it, which
// gives the same bits.
const GemmKernels& GemmKernelsFor(CpuIsa isa);
bool HasAvx512();

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_GEMM_GEMM_H_
