#include "kernels/cpu/elementwise.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/elementwise_kernels.h"
#include "kernels/cpu/reduce.h"

namespace qst {
namespace cpu {
namespace {

// Costs of one element in simple operations, for splitting work.
constexpr std::int64_t kExpCost = 4;
constexpr std::int64_t kErfCost = 32;

float SigmoidOf(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// The exact form, x * Phi(x).
float GeluOf(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f)); }
float GeluSlope(float x) {
  const float cdf = 0.5f * (1.0f + std::erf(x * 0.70710678118654752f));
  const float pdf = 0.39894228040143268f * std::exp(-0.5f * x * x);
  return cdf + x * pdf;
}

void GeluRow(const float* x, std::int64_t n, float* y) {
  for (std::int64_t j = 0; j < n; ++j) y[j] = GeluOf(x[j]);
}

void GeluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x) {
  for (std::int64_t j = 0; j < n; ++j) grad_x[j] = grad_y[j] * GeluSlope(x[j]);
}

void CopyRow(const float* x, std::int64_t n, float* y) { std::memmove(y, x, n * sizeof(float)); }

void CopyGradRow(const float* grad_y, const float*, std::int64_t n, float* grad_x) { CopyRow(grad_y, n, grad_x); }

// m of GateMix for every column.
std::vector<float> MixOfColumns(const ConstMatrixView& mix, bool apply_sigmoid, std::int64_t cols) {
  std::vector<float> m(cols);
  const float* values = mix.row<float>(0);
  for (std::int64_t j = 0; j < cols; ++j) {
    const float value = values[mix.cols == 1 ? 0 : j];
    m[j] = apply_sigmoid ? SigmoidOf(value) : value;
  }
  return m;
}

}  // namespace

namespace portable {

void ReluRow(const float* x, std::int64_t n, float* y) {
  for (std::int64_t j = 0; j < n; ++j) y[j] = x[j] < 0.0f ? 0.0f : x[j];
}

void SiluRow(const float* x, std::int64_t n, float* y) {
  for (std::int64_t j = 0; j < n; ++j) y[j] = x[j] * SigmoidOf(x[j]);
}

void ReluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x) {
  for (std::int64_t j = 0; j < n; ++j) grad_x[j] = x[j] > 0.0f ? grad_y[j] : 0.0f;
}

// silu'(x) = s (1 + x (1 - s)), s = sigmoid(x).
void SiluBackwardRow(const float* grad_y, const float* x, std::int64_t n, float* grad_x) {
  for (std::int64_t j = 0; j < n; ++j) {
    const float s = SigmoidOf(x[j]);
    grad_x[j] = grad_y[j] * (s * (1.0f + x[j] * (1.0f - s)));
  }
}

void SwiGluRow(const float* gate, const float* up, std::int64_t n, float* y) {
  for (std::int64_t j = 0; j < n; ++j) y[j] = gate[j] * SigmoidOf(gate[j]) * up[j];
}

void SwiGluBackwardRow(const float* grad_y, const float* gate, const float* up, std::int64_t n, float* grad_gate,
                       float* grad_up) {
  for (std::int64_t j = 0; j < n; ++j) {
    const float g = gate[j];
    const float u = up[j];
    const float gy = grad_y[j];
    const float s = SigmoidOf(g);
    grad_gate[j] = gy * u * (s * (1.0f + g * (1.0f - s)));
    grad_up[j] = gy * (g * s);
  }
}

void GateMixRow(const float* a, const float* b, const float* mix, std::int64_t n, float* out) {
  for (std::int64_t j = 0; j < n; ++j) out[j] = (1.0f - mix[j]) * a[j] + mix[j] * b[j];
}

void GateMixBackwardRow(const float* grad_out, const float* a, const float* b, const float* mix, std::int64_t n,
                        float* grad_a, float* grad_b, float* mix_sum) {
  for (std::int64_t j = 0; j < n; ++j) {
    const float g = grad_out[j];
    if (mix_sum != nullptr) mix_sum[j] += g * (b[j] - a[j]);
    if (grad_b != nullptr) grad_b[j] = mix[j] * g;
    if (grad_a != nullptr) grad_a[j] = (1.0f - mix[j]) * g;
  }
}

void AddRow(const float* x, std::int64_t n, float* y) {
  for (std::int64_t j = 0; j < n; ++j) y[j] += x[j];
}

}  // namespace portable

void Activate(const Exec& exec, Activation activation, const ConstMatrixView& x, const MatrixView& y) {
  void (*row)(const float*, std::int64_t, float*) = nullptr;
  std::int64_t cost = 1;
  switch (activation) {
    case Activation::kIdentity:
      row = &CopyRow;
      break;
    case Activation::kRelu:
      row = exec.use_avx2 ? &avx2::ReluRow : &portable::ReluRow;
      break;
    case Activation::kSilu:
      row = exec.use_avx2 ? &avx2::SiluRow : &portable::SiluRow;
      cost = kExpCost;
      break;
    case Activation::kGelu:
      row = &GeluRow;
      cost = kErfCost;
      break;
  }
  ParallelRows(exec, x.rows, cost * x.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) row(x.row<float>(i), x.cols, y.row<float>(i));
  });
}

void ActivateBackward(const Exec& exec, Activation activation, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                      const MatrixView& grad_x) {
  void (*row)(const float*, const float*, std::int64_t, float*) = nullptr;
  std::int64_t cost = 1;
  switch (activation) {
    case Activation::kIdentity:
      row = &CopyGradRow;
      break;
    case Activation::kRelu:
      row = exec.use_avx2 ? &avx2::ReluBackwardRow : &portable::ReluBackwardRow;
      break;
    case Activation::kSilu:
      row = exec.use_avx2 ? &avx2::SiluBackwardRow : &portable::SiluBackwardRow;
      cost = kExpCost;
      break;
    case Activation::kGelu:
      row = &GeluBackwardRow;
      cost = kErfCost;
      break;
  }
  ParallelRows(exec, x.rows, cost * x.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) row(grad_y.row<float>(i), x.row<float>(i), x.cols, grad_x.row<float>(i));
  });
}

void SwiGlu(const Exec& exec, const ConstMatrixView& gate, const ConstMatrixView& up, const MatrixView& y) {
  const auto row = exec.use_avx2 ? &avx2::SwiGluRow : &portable::SwiGluRow;
  ParallelRows(exec, gate.rows, kExpCost * gate.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) row(gate.row<float>(i), up.row<float>(i), gate.cols, y.row<float>(i));
  });
}

void SwiGluBackward(const Exec& exec, const ConstMatrixView& grad_y, const ConstMatrixView& gate,
                    const ConstMatrixView& up, const MatrixView& grad_gate, const MatrixView& grad_up) {
  const auto row = exec.use_avx2 ? &avx2::SwiGluBackwardRow : &portable::SwiGluBackwardRow;
  ParallelRows(exec, gate.rows, 2 * kExpCost * gate.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      row(grad_y.row<float>(i), gate.row<float>(i), up.row<float>(i), gate.cols, grad_gate.row<float>(i),
          grad_up.row<float>(i));
    }
  });
}

void GateMix(const Exec& exec, const ConstMatrixView& a, const ConstMatrixView& b, const ConstMatrixView& mix,
             bool apply_sigmoid, const MatrixView& out) {
  const auto row = exec.use_avx2 ? &avx2::GateMixRow : &portable::GateMixRow;
  const std::vector<float> m = MixOfColumns(mix, apply_sigmoid, out.cols);
  ParallelRows(exec, out.rows, out.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      row(a.row<float>(i), b.row<float>(i), m.data(), out.cols, out.row<float>(i));
    }
  });
}

void GateMixBackward(const Exec& exec, const ConstMatrixView& grad_out, const ConstMatrixView& a,
                     const ConstMatrixView& b, const ConstMatrixView& mix, bool apply_sigmoid, const MatrixView& grad_a,
                     const MatrixView& grad_b, const MatrixView& grad_mix) {
  const auto row = exec.use_avx2 ? &avx2::GateMixBackwardRow : &portable::GateMixBackwardRow;
  const std::int64_t cols = grad_out.cols;
  const std::vector<float> m = MixOfColumns(mix, apply_sigmoid, cols);
  std::vector<float> sums(grad_mix.empty() ? 0 : cols, 0.0f);
  float* const total = sums.empty() ? nullptr : sums.data();
  ReduceRows(exec, grad_out.rows, 2 * cols, cols, total, [&](std::int64_t begin, std::int64_t end, float* partial) {
    for (std::int64_t i = begin; i < end; ++i) {
      row(grad_out.row<float>(i), partial == nullptr ? nullptr : a.row<float>(i),
          partial == nullptr ? nullptr : b.row<float>(i), m.data(), cols,
          grad_a.empty() ? nullptr : grad_a.row<float>(i), grad_b.empty() ? nullptr : grad_b.row<float>(i), partial);
    }
  });
  if (total == nullptr) return;
  // One mix for all channels gets the sum over channels, ascending.
  float* grad = grad_mix.row<float>(0);
  float shared = 0.0f;
  for (std::int64_t j = 0; j < cols; ++j) {
    const float slope = apply_sigmoid ? m[j] * (1.0f - m[j]) : 1.0f;
    if (mix.cols == 1) {
      shared += sums[j] * slope;
    } else {
      grad[j] += sums[j] * slope;
    }
  }
  if (mix.cols == 1) grad[0] += shared;
}

void AddInto(const Exec& exec, const ConstMatrixView& x, const MatrixView& y, bool accumulate) {
  const auto add = exec.use_avx2 ? &avx2::AddRow : &portable::AddRow;
  const std::int64_t n = x.cols;
  ParallelRows(exec, x.rows, n, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> x_scratch(x.dtype == DType::kF32 ? 0 : n);
    std::vector<float> y_scratch(y.dtype == DType::kF32 ? 0 : n);
    for (std::int64_t i = begin; i < end; ++i) {
      if (y.dtype == DType::kF32 && !accumulate) {
        ToF32(exec, x.dtype, x.row<char>(0) + i * x.ld * DTypeBytes(x.dtype), n, y.row<float>(i));
        continue;
      }
      const float* from = RowAsF32(exec, x, i, x_scratch.data());
      if (y.dtype == DType::kF32) {
        add(from, n, y.row<float>(i));
        continue;
      }
      if (accumulate) {
        ToF32(exec, y.dtype, y.row<std::uint16_t>(i), n, y_scratch.data());
        add(from, n, y_scratch.data());
        from = y_scratch.data();
      }
      FromF32(exec, y.dtype, from, n, y.row<std::uint16_t>(i));
    }
  });
}

void GatherRows(const Exec& exec, const ConstMatrixView& x, const std::int32_t* indices, const MatrixView& y) {
  ParallelRows(exec, y.rows, y.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      ToF32(exec, x.dtype, x.row<char>(0) + indices[i] * x.ld * DTypeBytes(x.dtype), y.cols, y.row<float>(i));
    }
  });
}

void ScatterAddRows(const Exec& exec, const ConstMatrixView& grad_y, const std::int32_t* indices,
                    const MatrixView& grad_x) {
  const auto add = exec.use_avx2 ? &avx2::AddRow : &portable::AddRow;
  ParallelRows(exec, grad_y.rows, grad_y.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) add(grad_y.row<float>(i), grad_y.cols, grad_x.row<float>(indices[i]));
  });
}

void PoolColumns(const Exec& exec, Pooling pooling, const ConstMatrixView& x, const MatrixView& y) {
  ParallelRows(exec, x.rows, x.cols, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(x.dtype == DType::kF32 ? 0 : x.cols);
    for (std::int64_t i = begin; i < end; ++i) {
      const float* in = RowAsF32(exec, x, i, scratch.data());
      float* out = y.row<float>(i);
      for (std::int64_t j = 0; j < y.cols; ++j) {
        const std::int64_t first = j * x.cols / y.cols;
        const std::int64_t last = (j + 1) * x.cols / y.cols;
        float value = in[first];
        for (std::int64_t c = first + 1; c < last; ++c) {
          if (pooling == Pooling::kAverage) {
            value += in[c];
          } else if (in[c] > value || std::isnan(in[c])) {
            value = in[c];
          }
        }
        out[j] = pooling == Pooling::kAverage ? value / static_cast<float>(last - first) : value;
      }
    }
  });
}

}  // namespace cpu
}  // namespace qst
