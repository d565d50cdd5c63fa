// Linear layers on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
//
// Types     x and y f32, bf16 or f16 in any mix. Products are made by tensor cores with factors in bf16 (f16 if x or a
//           dense weight is f16) and sums in float32; x and 4-bit weights are rounded to that type where they are not
//           of it. A dense f32 weight (side network) makes products in float32, or TF32 if the stream allows it; with x
//           of a half type and few outputs always as exact as in float32 (gemm/skinny.cuh).
//           Gradients of x have factors in bf16 whatever half type the weight has: many are too small for f16.
// Bits      A token's result depends on that token alone within each of two ways: up to kMaxFewTokens tokens
// (generation:
//           4-bit values unrounded, float32 products) and more (unpacked panels, cuBLASLt with one algorithm for a
//           shape). The two ways may differ in the last bits of a half type; so may different kinds of GPU.
// Memory    A stream holds, from its first linear op on, cuBLASLt's workspace (kBlasWorkspaceBytes), two panels of
//           unpacked weights (LinearPanelBytes of the largest weight) and shares Stream::Scratch (LinearScratchBytes of
//           the most demanding layer); gemm/plan.h. Growing waits for the stream once; after a first pass nothing
//           grows.
// Weights   A 4-bit weight's bytes are written by copies, by Quantize4Bit, or before the host enqueues; not by other
//           kernels on this stream (Stream::unpack_must_wait says why). Dense weights may be written by any op.
#ifndef QST_KERNELS_CUDA_LINEAR_H_
#define QST_KERNELS_CUDA_LINEAR_H_

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// kUnimplemented: a 4-bit weight whose block sizes are not powers of two. kResourceExhausted: no room for the above.
absl::Status Linear(Stream& stream, const ConstMatrixView& x, const WeightView& w, const ConstMatrixView& bias,
                    const MatrixView& y, bool accumulate);
absl::Status LinearBackwardInput(Stream& stream, const ConstMatrixView& grad_y, const WeightView& w,
                                 const MatrixView& grad_x, bool accumulate);
// Sums over tokens go over kGradChunkRows (gradient of the bias: kColumnSumRows) rows in order, then over those sums in
// order.
absl::Status LinearBackwardWeight(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                                  const MatrixView& grad_w, const MatrixView& grad_bias, bool accumulate);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_LINEAR_H_
