// What linear layers do to rows beside their products: copies, last steps, sums over rows. For .cu files.
#ifndef QST_KERNELS_CUDA_GEMM_ROWS_CUH_
#define QST_KERNELS_CUDA_GEMM_ROWS_CUH_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// to = from, converted and rounded to nearest even; rows of `to` beyond those of `from` become zero. f32, bf16 or f16
// each; equal numbers of columns; any alignment.
absl::Status CopyRows(Stream& stream, const ConstMatrixView& from, const MatrixView& to);

// y (+)= (sums + bias): added in float32, rounded once. sums f32 or without data (zero); bias f32 [1, n] or empty.
absl::Status FinishRows(Stream& stream, const ConstMatrixView& sums, const ConstMatrixView& bias, const MatrixView& y,
                        bool accumulate);

// out (+)= partial[0] + partial[1] + ..., in this order. Partial sums as large as `out` (f32), `stride` elements apart.
absl::Status AddPartialSums(Stream& stream, const float* partial, std::int64_t ld, std::int64_t stride,
                            std::int64_t num_partials, const MatrixView& out, bool accumulate);

// sums[1, n] (+)= the sum of the rows of x (f32): over kColumnSumRows rows in order, then over those sums in order.
// scratch: as many rows of n floats, PaddedCols apart.
absl::Status SumColumns(Stream& stream, const ConstMatrixView& x, float* scratch, const MatrixView& sums,
                        bool accumulate);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_ROWS_CUH_
