#include "kernels/cpu/loss.h"

#include <cmath>

#include "kernels/cpu/loss_kernels.h"

namespace qst {
namespace cpu {
namespace portable {

float MaxOfRow(const float* x, std::int64_t n) {
  float max = x[0];
  for (std::int64_t i = 1; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

std::int64_t FirstIndexOf(float value, const float* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (x[i] == value) return i;
  }
  return 0;
}

double SumOfExp(float* x, std::int64_t n, float max, bool keep) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = std::exp(x[i] - max);
    sum += static_cast<double>(value);
    if (keep) x[i] = value;
  }
  return sum;
}

void ScaleRow(float factor, std::int64_t n, float* x) {
  for (std::int64_t i = 0; i < n; ++i) x[i] *= factor;
}

}  // namespace portable

// loss = log(sum exp(x - max)) - (x[target] - max);  grad = scale * (exp(x - max) / sum - [i == target]).
void CrossEntropy(const Exec& exec, const MatrixView& logits, const std::int32_t* targets, float scale, bool want_grad,
                  float* losses, std::int32_t* argmax) {
  const auto max_of_row = exec.use_avx2 ? &avx2::MaxOfRow : &portable::MaxOfRow;
  const auto first_index_of = exec.use_avx2 ? &avx2::FirstIndexOf : &portable::FirstIndexOf;
  const auto sum_of_exp = exec.use_avx2 ? &avx2::SumOfExp : &portable::SumOfExp;
  const auto scale_row = exec.use_avx2 ? &avx2::ScaleRow : &portable::ScaleRow;
  const std::int64_t n = logits.cols;
  ParallelRows(exec, logits.rows, 8 * n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      float* row = logits.row<float>(i);
      const float max = max_of_row(row, n);
      if (argmax != nullptr) argmax[i] = static_cast<std::int32_t>(first_index_of(max, row, n));
      const double target_logit = static_cast<double>(row[targets[i]]) - static_cast<double>(max);
      const double sum = sum_of_exp(row, n, max, want_grad);
      losses[i] = static_cast<float>(std::log(sum) - target_logit);
      if (!want_grad) continue;
      scale_row(static_cast<float>(static_cast<double>(scale) / sum), n, row);
      row[targets[i]] -= scale;
    }
  });
}

// loss = (x - target)^2;  grad = 2 scale (x - target).
void SquaredError(const Exec& exec, const MatrixView& predictions, const float* targets, float scale, bool want_grad,
                  float* losses) {
  constexpr std::int64_t kCost = 4;
  ParallelRows(exec, predictions.rows, kCost, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      float* const x = predictions.row<float>(i);
      const float difference = *x - targets[i];
      losses[i] = difference * difference;
      if (want_grad) *x = 2.0f * scale * difference;
    }
  });
}

}  // namespace cpu
}  // namespace qst
