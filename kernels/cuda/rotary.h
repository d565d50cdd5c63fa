// Rotary embedding on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_ROTARY_H_
#define QST_KERNELS_CUDA_ROTARY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// x f32, bf16 or f16.
absl::Status Rotary(Stream& stream, const MatrixView& x, std::int64_t num_heads, const std::int32_t* positions,
                    const float* inv_freq, bool inverse);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ROTARY_H_
