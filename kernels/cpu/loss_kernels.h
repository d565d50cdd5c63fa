// Cross-entropy kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_LOSS_KERNELS_H_
#define QST_KERNELS_CPU_LOSS_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

// n >= 1 values of one row, in two instruction sets.
#define QST_LOSS_ROW_KERNELS                                              \
  float MaxOfRow(const float* x, std::int64_t n);                         \
  /* The first index with x[i] == value, or 0 if there is none (NaN). */  \
  std::int64_t FirstIndexOf(float value, const float* x, std::int64_t n); \
  /* Sum of exp(x - max). If `keep`, x receives the summands. */          \
  double SumOfExp(float* x, std::int64_t n, float max, bool keep);        \
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

#endif  // QST_KERNELS_CPU_LOSS_KERNELS_H_
