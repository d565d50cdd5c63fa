#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm/gemv.cuh"
#include "kernels/cuda/gemm/grad_weight.cuh"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/gemm/rows.cuh"
#include "kernels/cuda/gemm/skinny.cuh"
#include "kernels/cuda/gemm/weight_product.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/quant4.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {

absl::Status Linear(Stream& stream, const ConstMatrixView& x, const WeightView& w, const ConstMatrixView& bias,
                    const MatrixView& y, bool accumulate) {
  if (w.is_quantized) QST_RETURN_IF_ERROR(CheckQuant4ForCuda(w.quant4));
  if (y.empty()) return absl::OkStatus();
  // No inner dimension: sums of nothing.
  if (x.cols == 0) return FinishRows(stream, ConstMatrixView(), bias, y, accumulate);
  if (y.rows <= kMaxFewTokens) return LinearOfFewTokens(stream, x, w, bias, y, accumulate);
  if (IsSkinnyProduct(x.dtype, w.is_quantized, w.dense.dtype, y.dtype, y.cols)) {
    return SkinnyProduct(stream, x, w.dense, bias, y, accumulate);
  }
  const DType factor = LinearComputeType(x.dtype, w.is_quantized, w.dense.dtype);
  return MultiplyByWeight(stream, WeightUse::kTransposed, factor, x, w, bias, y, accumulate);
}

absl::Status LinearBackwardInput(Stream& stream, const ConstMatrixView& grad_y, const WeightView& w,
                                 const MatrixView& grad_x, bool accumulate) {
  if (w.is_quantized) QST_RETURN_IF_ERROR(CheckQuant4ForCuda(w.quant4));
  if (grad_x.empty()) return absl::OkStatus();
  if (grad_y.cols == 0) return FinishRows(stream, ConstMatrixView(), ConstMatrixView(), grad_x, accumulate);
  const DType factor = LinearBackwardComputeType(w.is_quantized, w.dense.dtype);
  return MultiplyByWeight(stream, WeightUse::kPlain, factor, grad_y, w, ConstMatrixView(), grad_x, accumulate);
}

absl::Status LinearBackwardWeight(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                                  const MatrixView& grad_w, const MatrixView& grad_bias, bool accumulate) {
  if (!grad_w.empty()) {
    const bool is_skinny = x.rows > 0 && IsSkinnyGrad(x.dtype, grad_y.cols);
    QST_RETURN_IF_ERROR(is_skinny ? SkinnyGrad(stream, grad_y, x, grad_w, accumulate)
                                  : GradOfWeight(stream, grad_y, x, grad_w, accumulate));
  }
  if (grad_bias.empty()) return absl::OkStatus();
  return GradOfBias(stream, grad_y, grad_bias, accumulate);
}

}  // namespace cuda
}  // namespace qst
