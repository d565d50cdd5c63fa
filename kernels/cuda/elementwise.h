// Elementwise ops on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_ELEMENTWISE_H_
#define QST_KERNELS_CUDA_ELEMENTWISE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// All operands of one float type, for this and the next three; kUnimplemented else.
absl::Status Activate(Stream& stream, Activation activation, const ConstMatrixView& x, const MatrixView& y);
absl::Status ActivateBackward(Stream& stream, Activation activation, const ConstMatrixView& grad_y,
                              const ConstMatrixView& x, const MatrixView& grad_x);
absl::Status SwiGlu(Stream& stream, const ConstMatrixView& gate, const ConstMatrixView& up, const MatrixView& y);
absl::Status SwiGluBackward(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& gate,
                            const ConstMatrixView& up, const MatrixView& grad_gate, const MatrixView& grad_up);

// a, b and out f32 or one and the same 16-bit type each; kUnimplemented for bf16 beside f16.
absl::Status GateMix(Stream& stream, const ConstMatrixView& a, const ConstMatrixView& b, const ConstMatrixView& mix,
                     bool apply_sigmoid, const MatrixView& out);
// a and b as above, the gradients f32. a and b are read only for grad_mix.
absl::Status GateMixBackward(Stream& stream, const ConstMatrixView& grad_out, const ConstMatrixView& a,
                             const ConstMatrixView& b, const ConstMatrixView& mix, bool apply_sigmoid,
                             const MatrixView& grad_a, const MatrixView& grad_b, const MatrixView& grad_mix);

// Any pair of float types.
absl::Status AddInto(Stream& stream, const ConstMatrixView& x, const MatrixView& y, bool accumulate);

// x any float type; y f32 or as x.
absl::Status GatherRows(Stream& stream, const ConstMatrixView& x, const std::int32_t* indices, const MatrixView& y);
absl::Status PoolColumns(Stream& stream, Pooling pooling, const ConstMatrixView& x, const MatrixView& y);
// f32.
absl::Status ScatterAddRows(Stream& stream, const ConstMatrixView& grad_y, const std::int32_t* indices,
                            const MatrixView& grad_x);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ELEMENTWISE_H_
