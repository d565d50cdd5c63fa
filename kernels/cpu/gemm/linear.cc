#include "kernels/cpu/gemm/linear.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/gemm/gemm.h"

namespace qst {
namespace cpu {

void Linear(ThreadPool* threads, const GemmKernels& kernels, const ConstMatrixView& x, const WeightView& w,
            const ConstMatrixView& bias, const MatrixView& y, bool accumulate) {
  LeftOperand left;
  left.matrix = x;
  RightOperand right;
  right.weight = w;
  right.is_transposed = true;
  Gemm(threads, kernels, left, right, bias.empty() ? nullptr : bias.row<float>(0), y, accumulate);
}

void LinearBackwardInput(ThreadPool* threads, const GemmKernels& kernels, const ConstMatrixView& grad_y,
                         const WeightView& w, const MatrixView& grad_x, bool accumulate) {
  LeftOperand left;
  left.matrix = grad_y;
  RightOperand right;
  right.weight = w;
  Gemm(threads, kernels, left, right, nullptr, grad_x, accumulate);
}

void LinearBackwardWeight(ThreadPool* threads, const GemmKernels& kernels, const ConstMatrixView& grad_y,
                          const ConstMatrixView& x, const MatrixView& grad_w, const MatrixView& grad_bias,
                          bool accumulate) {
  LeftOperand left;
  left.matrix = grad_y;
  left.is_transposed = true;
  RightOperand right;
  right.weight = WeightView::Dense(x);
  Gemm(threads, kernels, left, right, nullptr, grad_w, accumulate);

  if (grad_bias.empty()) return;
  // Columns are independent chains over T.
  constexpr std::int64_t kGrain = 64;
  threads->ParallelFor(grad_bias.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    float* sum = grad_bias.row<float>(0);
    if (!accumulate) std::fill(sum + begin, sum + end, 0.0f);
    for (std::int64_t t = 0; t < grad_y.rows; ++t) {
      const float* row = grad_y.row<float>(t);
      for (std::int64_t j = begin; j < end; ++j) sum[j] += row[j];
    }
  });
}

}  // namespace cpu
}  // namespace qst
