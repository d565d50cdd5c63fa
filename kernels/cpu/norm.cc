#include "kernels/cpu/norm.h"

#include <cmath>
#include <vector>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/norm_kernels.h"
#include "kernels/cpu/reduce.h"

namespace qst {
namespace cpu {
namespace portable {

float RmsNormRow(const float* x, const float* weight, std::int64_t d, float eps, float* y) {
  float sum = 0.0f;
  for (std::int64_t j = 0; j < d; ++j) sum += x[j] * x[j];
  const float inv = 1.0f / std::sqrt(sum / static_cast<float>(d) + eps);
  for (std::int64_t j = 0; j < d; ++j) y[j] = x[j] * inv * weight[j];
  return inv;
}

// With n = x * inv and g = grad_y * weight:  grad_x = inv * (g - n * mean(g n)),  grad_weight += grad_y * n.
void RmsNormBackwardRow(const float* grad_y, const float* x, const float* weight, float inv_rms, std::int64_t d,
                        bool accumulate, float* grad_x, float* grad_weight) {
  float dot = 0.0f;
  for (std::int64_t j = 0; j < d; ++j) dot += grad_y[j] * weight[j] * x[j];
  const float scale = dot * inv_rms * inv_rms / static_cast<float>(d);
  for (std::int64_t j = 0; j < d; ++j) {
    const float grad = inv_rms * (grad_y[j] * weight[j] - x[j] * scale);
    grad_x[j] = accumulate ? grad_x[j] + grad : grad;
  }
  if (grad_weight == nullptr) return;
  for (std::int64_t j = 0; j < d; ++j) grad_weight[j] += grad_y[j] * (x[j] * inv_rms);
}

void LayerNormRow(const float* x, const float* weight, const float* bias, std::int64_t d, float eps, float* y,
                  float* mean, float* inv_std) {
  float sum = 0.0f;
  for (std::int64_t j = 0; j < d; ++j) sum += x[j];
  const float m = sum / static_cast<float>(d);
  float squares = 0.0f;
  for (std::int64_t j = 0; j < d; ++j) squares += (x[j] - m) * (x[j] - m);
  const float inv = 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
  for (std::int64_t j = 0; j < d; ++j) {
    const float normed = (x[j] - m) * inv;
    y[j] = weight == nullptr ? normed : normed * weight[j] + bias[j];
  }
  *mean = m;
  *inv_std = inv;
}

// With n = (x - mean) * inv and g = grad_y * weight:
//   grad_x = inv * (g - mean(g) - n * mean(g n)),  grad_weight += grad_y * n,  grad_bias += grad_y.
void LayerNormBackwardRow(const float* grad_y, const float* x, const float* weight, float mean, float inv_std,
                          std::int64_t d, bool accumulate, float* grad_x, float* grad_weight, float* grad_bias) {
  float sum = 0.0f;
  float dot = 0.0f;
  for (std::int64_t j = 0; j < d; ++j) {
    const float g = weight == nullptr ? grad_y[j] : grad_y[j] * weight[j];
    sum += g;
    dot += g * ((x[j] - mean) * inv_std);
  }
  sum /= static_cast<float>(d);
  dot /= static_cast<float>(d);
  for (std::int64_t j = 0; j < d; ++j) {
    const float g = weight == nullptr ? grad_y[j] : grad_y[j] * weight[j];
    const float grad = inv_std * (g - sum - (x[j] - mean) * inv_std * dot);
    grad_x[j] = accumulate ? grad_x[j] + grad : grad;
  }
  if (grad_weight != nullptr) {
    for (std::int64_t j = 0; j < d; ++j) grad_weight[j] += grad_y[j] * ((x[j] - mean) * inv_std);
  }
  if (grad_bias != nullptr) {
    for (std::int64_t j = 0; j < d; ++j) grad_bias[j] += grad_y[j];
  }
}

}  // namespace portable

void RmsNorm(const Exec& exec, const ConstMatrixView& x, const float* weight, float eps, const MatrixView& y,
             float* inv_rms) {
  const auto row = exec.use_avx2 ? &avx2::RmsNormRow : &portable::RmsNormRow;
  ParallelRows(exec, x.rows, x.cols, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(x.dtype == DType::kF32 ? 0 : x.cols);
    for (std::int64_t i = begin; i < end; ++i) {
      const float inv = row(RowAsF32(exec, x, i, scratch.data()), weight, x.cols, eps, y.row<float>(i));
      if (inv_rms != nullptr) inv_rms[i] = inv;
    }
  });
}

void RmsNormBackward(const Exec& exec, const ConstMatrixView& grad_y, const ConstMatrixView& x, const float* weight,
                     const float* inv_rms, const MatrixView& grad_x, float* grad_weight, bool accumulate) {
  const auto row = exec.use_avx2 ? &avx2::RmsNormBackwardRow : &portable::RmsNormBackwardRow;
  const std::int64_t d = x.cols;
  ReduceRows(exec, x.rows, 2 * d, d, grad_weight, [&](std::int64_t begin, std::int64_t end, float* partial) {
    std::vector<float> scratch(x.dtype == DType::kF32 ? 0 : d);
    for (std::int64_t i = begin; i < end; ++i) {
      row(grad_y.row<float>(i), RowAsF32(exec, x, i, scratch.data()), weight, inv_rms[i], d, accumulate,
          grad_x.row<float>(i), partial);
    }
  });
}

void LayerNorm(const Exec& exec, const ConstMatrixView& x, const float* weight, const float* bias, float eps,
               const MatrixView& y, float* mean, float* inv_std) {
  const auto row = exec.use_avx2 ? &avx2::LayerNormRow : &portable::LayerNormRow;
  ParallelRows(exec, x.rows, 2 * x.cols, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(x.dtype == DType::kF32 ? 0 : x.cols);
    for (std::int64_t i = begin; i < end; ++i) {
      float row_mean;
      float row_inv_std;
      row(RowAsF32(exec, x, i, scratch.data()), weight, bias, x.cols, eps, y.row<float>(i), &row_mean, &row_inv_std);
      if (mean != nullptr) mean[i] = row_mean;
      if (inv_std != nullptr) inv_std[i] = row_inv_std;
    }
  });
}

void LayerNormBackward(const Exec& exec, const ConstMatrixView& grad_y, const ConstMatrixView& x, const float* weight,
                       const float* mean, const float* inv_std, const MatrixView& grad_x, float* grad_weight,
                       float* grad_bias, bool accumulate) {
  const auto row = exec.use_avx2 ? &avx2::LayerNormBackwardRow : &portable::LayerNormBackwardRow;
  const std::int64_t d = x.cols;
  // One partial sum holds both gradients: [2, d].
  std::vector<float> sums(grad_weight == nullptr && grad_bias == nullptr ? 0 : 2 * d, 0.0f);
  float* const total = sums.empty() ? nullptr : sums.data();
  ReduceRows(exec, x.rows, 3 * d, 2 * d, total, [&](std::int64_t begin, std::int64_t end, float* partial) {
    std::vector<float> scratch(x.dtype == DType::kF32 ? 0 : d);
    float* const partial_weight = grad_weight == nullptr ? nullptr : partial;
    float* const partial_bias = grad_bias == nullptr ? nullptr : partial + d;
    for (std::int64_t i = begin; i < end; ++i) {
      row(grad_y.row<float>(i), RowAsF32(exec, x, i, scratch.data()), weight, mean[i], inv_std[i], d, accumulate,
          grad_x.row<float>(i), partial_weight, partial_bias);
    }
  });
  if (grad_weight != nullptr) {
    for (std::int64_t j = 0; j < d; ++j) grad_weight[j] += sums[j];
  }
  if (grad_bias != nullptr) {
    for (std::int64_t j = 0; j < d; ++j) grad_bias[j] += sums[d + j];
  }
}

}  // namespace cpu
}  // namespace qst
