#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/row_blocks.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

// Groups are as wide as the gradients allow.
constexpr int kWidth = kWideElems<float>;

// The gradient of a row: g = grad_y * weight (or grad_y) and the normalised n = (x - mean) * inv, group by group; the
// first kHeldGroups are read once.
template <typename X, bool kWide>
class HeldGrads {
 public:
  __device__ __forceinline__ HeldGrads(const float* grad_y, const X* x, const float* weight, float mean, float inv,
                                       int d)
      : grad_y_(grad_y), x_(x), weight_(weight), mean_(mean), inv_(inv), d_(d) {
#pragma unroll
    for (int k = 0; k < kHeldGroups; ++k) {
      held_x_[k] = LoadPack<kWide, kWidth>(x_ + Column(k), d_ - Column(k));
      held_g_[k] = LoadPack<kWide, kWidth>(grad_y_ + Column(k), d_ - Column(k));
    }
  }

  // visit(first column, elements that are there, g, n), in ascending order; g and n are 0 beyond the row.
  template <typename Visit>
  __device__ __forceinline__ void ForEach(const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < kHeldGroups; ++k) {
      if (Column(k) < d_) VisitPacks(Column(k), held_g_[k], held_x_[k], visit);
    }
    for (int j = Column(kHeldGroups); j < d_; j += blockDim.x * kWidth) {
      VisitPacks(j, LoadPack<kWide, kWidth>(grad_y_ + j, d_ - j), LoadPack<kWide, kWidth>(x_ + j, d_ - j), visit);
    }
  }

 private:
  __device__ __forceinline__ int Column(int k) const { return static_cast<int>(threadIdx.x + k * blockDim.x) * kWidth; }

  template <typename Visit>
  __device__ __forceinline__ void VisitPacks(int j, const Pack<float, kWidth>& grads, const Pack<X, kWidth>& xs,
                                             const Visit& visit) const {
    const int count = kWide || d_ - j > kWidth ? kWidth : d_ - j;
    float g[kWidth];
    float n[kWidth];
    if (weight_ != nullptr) Load<kWide>(weight_ + j, count, g);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      // Rounded by itself on every path, not fused with a sum here and there.
      g[i] = weight_ != nullptr ? __fmul_rn(grads.values[i], g[i]) : grads.values[i];
      n[i] = i < count ? (ToFloat(xs.values[i]) - mean_) * inv_ : 0.0f;
    }
    visit(j, count, g, n);
  }

  const float* const grad_y_;
  const X* const x_;
  const float* const weight_;
  const float mean_;
  const float inv_;
  const int d_;
  Pack<X, kWidth> held_x_[kHeldGroups];
  Pack<float, kWidth> held_g_[kHeldGroups];
};

// With a mean:   grad_x (+)= inv (g - mean(g) - n mean(g n)),  the backward of layer norm;
// without one:   grad_x (+)= inv (g - n mean(g n)),            the backward of RMS norm, where n = x inv.
template <typename X, bool kHasMean, bool kWide>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    NormBackwardKernel(DeviceRows<const float> grad_y, DeviceRows<const X> x, const float* weight, const float* means,
                       const float* invs, std::int64_t rows, int d, float inv_d, DeviceRows<float> grad_x,
                       bool accumulate) {
  __shared__ float shared[kWarpSize];
  const std::int64_t row = RowOfThread();
  if (row >= rows) return;
  const float inv = invs[row];
  const HeldGrads<X, kWide> held(grad_y.at(row, 0), x.at(row, 0), weight, kHasMean ? means[row] : 0.0f, inv, d);
  float sum = 0.0f;
  float dot = 0.0f;
  held.ForEach([&](int, int, const float(&g)[kWidth], const float(&n)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (kHasMean) sum += g[i];
      dot = fmaf(g[i], n[i], dot);
    }
  });
  const float mean_g = kHasMean ? RowSum(sum, shared) * inv_d : 0.0f;
  const float mean_gn = RowSum(dot, shared) * inv_d;
  held.ForEach([&](int j, int count, const float(&g)[kWidth], const float(&n)[kWidth]) {
    float out[kWidth] = {};
    if (accumulate) Load<kWide>(grad_x.at(row, j), count, out);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = fmaf(inv, fmaf(-n[i], mean_gn, g[i] - mean_g), out[i]);
    Store<kWide>(out, count, grad_x.at(row, j));
  });
}

// grad_weight += grad_y n,  grad_bias += grad_y, each if wanted.
template <typename X, bool kHasMean>
struct GradWeightTerm {
  static constexpr int kSums = kHasMean ? 2 : 1;
  DeviceRows<const float> grad_y;
  DeviceRows<const X> x;
  const float* means;
  const float* invs;
  float* grad_weight;
  float* grad_bias;

  __device__ __forceinline__ void Add(std::int64_t row, std::int64_t col, float (&sums)[kSums]) const {
    const float grad = *grad_y.at(row, col);
    const float mean = kHasMean ? means[row] : 0.0f;
    sums[0] = fmaf(grad, (ToFloat(*x.at(row, col)) - mean) * invs[row], sums[0]);
    if (kHasMean) sums[kSums - 1] += grad;
  }
  __device__ __forceinline__ void Finish(int sum, std::int64_t col, float total) const {
    float* const to = sum == 0 ? grad_weight : grad_bias;
    if (to != nullptr) to[col] += total;
  }
};

template <bool kHasMean>
absl::Status NormBackward(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x, const float* weight,
                          const float* means, const float* invs, const MatrixView& grad_x, float* grad_weight,
                          float* grad_bias, bool accumulate) {
  const bool is_wide = x.cols % kWidth == 0 && AllowsPacks(grad_y, kWidth) && AllowsPacks(x, kWidth) &&
                       AllowsPacks(grad_x, kWidth) && AllowsPacks(weight, kWidth);
  return DispatchFloat(x.dtype, [&](auto* x_tag) {
    using X = std::remove_pointer_t<decltype(x_tag)>;
    QST_RETURN_IF_ERROR(DispatchBool(is_wide, [&](auto wide) {
      return Launch(stream, RowBlocks(x.rows, CeilDiv(x.cols, kWidth)),
                    NormBackwardKernel<X, kHasMean, decltype(wide)::value>, RowsOf<float>(grad_y), RowsOf<X>(x), weight,
                    means, invs, x.rows, static_cast<int>(x.cols), 1.0f / static_cast<float>(x.cols),
                    RowsOf<float>(grad_x), accumulate);
    }));
    if (grad_weight == nullptr && grad_bias == nullptr) return absl::OkStatus();
    const GradWeightTerm<X, kHasMean> term{RowsOf<float>(grad_y), RowsOf<X>(x), means, invs, grad_weight, grad_bias};
    return SumColumns<false>(stream, term, x.rows, x.cols);
  });
}

}  // namespace

absl::Status RmsNormBackward(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                             const float* weight, const float* inv_rms, const MatrixView& grad_x, float* grad_weight,
                             bool accumulate) {
  return NormBackward<false>(stream, grad_y, x, weight, nullptr, inv_rms, grad_x, grad_weight, nullptr, accumulate);
}

absl::Status LayerNormBackward(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                               const float* weight, const float* mean, const float* inv_std, const MatrixView& grad_x,
                               float* grad_weight, float* grad_bias, bool accumulate) {
  return NormBackward<true>(stream, grad_y, x, weight, mean, inv_std, grad_x, grad_weight, grad_bias, accumulate);
}

}  // namespace cuda
}  // namespace qst
