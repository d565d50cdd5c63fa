// Rows with a scale each, on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_WIRE_H_
#define QST_KERNELS_CUDA_WIRE_H_

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// wire is i8 or f8_e4m3; x and y f32, bf16 or f16.
absl::Status EncodeRows(Stream& stream, const ConstMatrixView& x, DType wire, void* out);
absl::Status DecodeRows(Stream& stream, const void* in, DType wire, const MatrixView& y);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_WIRE_H_
