// Losses on CUDA: cross-entropy, squared error. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_LOSS_H_
#define QST_KERNELS_CUDA_LOSS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// logits f32; argmax may be null. Targets outside the vocabulary are not noticed.
absl::Status CrossEntropy(Stream& stream, const MatrixView& logits, const std::int32_t* targets, float scale,
                          bool want_grad, float* losses, std::int32_t* argmax);

// predictions f32, one column.
absl::Status SquaredError(Stream& stream, const MatrixView& predictions, const float* targets, float scale,
                          bool want_grad, float* losses);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_LOSS_H_
