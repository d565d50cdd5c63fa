// AdamW and the sum of squares on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_OPTIMIZER_H_
#define QST_KERNELS_CUDA_OPTIMIZER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace qst {
namespace cuda {

// params.sum_of_squares, if not null, is device memory.
absl::Status AdamW(Stream& stream, const AdamWParams& params, std::int64_t n, float* param, const float* grad,
                   float* exp_avg, float* exp_avg_sq);
// sum is device memory.
absl::Status SumOfSquares(Stream& stream, const float* x, std::int64_t n, double* sum);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_OPTIMIZER_H_
