#include "kernels/cuda/norm.h"

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/row_blocks.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"

namespace qst {
namespace cuda {
namespace {

// One row of x as a thread sees it: its groups of kWideElems<X> elements, the first kHeldGroups of them read once and
// kept. ForEach calls visit(first column, elements that are there, their values) in ascending order.
template <typename X, bool kWide>
class HeldRow {
 public:
  static constexpr int kWidth = kWideElems<X>;

  __device__ __forceinline__ HeldRow(const X* row, int d) : row_(row), d_(d) {
#pragma unroll
    for (int k = 0; k < kHeldGroups; ++k) held_[k] = LoadPack<kWide, kWidth>(row_ + Column(k), d_ - Column(k));
  }

  template <typename Visit>
  __device__ __forceinline__ void ForEach(const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < kHeldGroups; ++k) {
      if (Column(k) < d_) VisitPack(Column(k), held_[k], visit);
    }
    for (int j = Column(kHeldGroups); j < d_; j += blockDim.x * kWidth) {
      VisitPack(j, LoadPack<kWide, kWidth>(row_ + j, d_ - j), visit);
    }
  }

 private:
  __device__ __forceinline__ int Column(int k) const { return static_cast<int>(threadIdx.x + k * blockDim.x) * kWidth; }

  template <typename Visit>
  __device__ __forceinline__ void VisitPack(int j, const Pack<X, kWidth>& pack, const Visit& visit) const {
    float values[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = ToFloat(pack.values[i]);
    visit(j, kWide || d_ - j > kWidth ? kWidth : d_ - j, values);
  }

  const X* const row_;
  const int d_;
  Pack<X, kWidth> held_[kHeldGroups];
};

// y = x / sqrt(mean(x^2) + eps) * weight
template <typename X, typename Y, bool kWide>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    RmsNormKernel(DeviceRows<const X> x, const float* weight, float eps, std::int64_t rows, int d, float inv_d,
                  DeviceRows<Y> y, float* inv_rms) {
  constexpr int kWidth = kWideElems<X>;
  __shared__ float shared[kWarpSize];
  const std::int64_t row = RowOfThread();
  if (row >= rows) return;
  const HeldRow<X, kWide> held(x.at(row, 0), d);
  float sum = 0.0f;
  held.ForEach([&](int, int, const float(&values)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum = fmaf(values[i], values[i], sum);
  });
  const float inv = 1.0f / sqrtf(fmaf(RowSum(sum, shared), inv_d, eps));
  held.ForEach([&](int j, int count, const float(&values)[kWidth]) {
    float out[kWidth];
    Load<kWide>(weight + j, count, out);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] *= values[i] * inv;
    Store<kWide>(out, count, y.at(row, j));
  });
  if (inv_rms != nullptr && threadIdx.x == 0) inv_rms[row] = inv;
}

// y = (x - mean) / sqrt(var + eps) * weight + bias, the variance around the mean found before.
template <typename X, typename Y, bool kWide>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    LayerNormKernel(DeviceRows<const X> x, const float* weight, const float* bias, float eps, std::int64_t rows, int d,
                    float inv_d, DeviceRows<Y> y, float* means, float* inv_stds) {
  constexpr int kWidth = kWideElems<X>;
  __shared__ float shared[kWarpSize];
  const std::int64_t row = RowOfThread();
  if (row >= rows) return;
  const HeldRow<X, kWide> held(x.at(row, 0), d);
  float sum = 0.0f;
  held.ForEach([&](int, int, const float(&values)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += values[i];
  });
  const float mean = RowSum(sum, shared) * inv_d;
  float squares = 0.0f;
  held.ForEach([&](int, int count, const float(&values)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float centred = i < count ? values[i] - mean : 0.0f;
      squares = fmaf(centred, centred, squares);
    }
  });
  const float inv_std = 1.0f / sqrtf(fmaf(RowSum(squares, shared), inv_d, eps));
  held.ForEach([&](int j, int count, const float(&values)[kWidth]) {
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = (values[i] - mean) * inv_std;
    if (weight != nullptr) {
      float weights[kWidth];
      float biases[kWidth];
      Load<kWide>(weight + j, count, weights);
      Load<kWide>(bias + j, count, biases);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) out[i] = fmaf(out[i], weights[i], biases[i]);
    }
    Store<kWide>(out, count, y.at(row, j));
  });
  if (threadIdx.x == 0) {
    if (means != nullptr) means[row] = mean;
    if (inv_stds != nullptr) inv_stds[row] = inv_std;
  }
}

// visit(X*, Y*, std::bool_constant<wide>) for a norm of x into y.
template <typename Visit>
absl::Status DispatchNorm(const ConstMatrixView& x, const ConstMatrixView& y, const float* weight, const float* bias,
                          const Visit& visit) {
  return DispatchFloat(x.dtype, [&](auto* x_tag) {
    constexpr int kWidth = kWideElems<std::remove_pointer_t<decltype(x_tag)>>;
    const bool is_wide = x.cols % kWidth == 0 && AllowsPacks(x, kWidth) && AllowsPacks(y, kWidth) &&
                         AllowsPacks(weight, kWidth) && AllowsPacks(bias, kWidth);
    return DispatchFloat(y.dtype, [&](auto* y_tag) {
      return DispatchBool(is_wide, [&](auto wide) { return visit(x_tag, y_tag, wide); });
    });
  });
}

}  // namespace

absl::Status RmsNorm(Stream& stream, const ConstMatrixView& x, const float* weight, float eps, const MatrixView& y,
                     float* inv_rms) {
  return DispatchNorm(x, y, weight, nullptr, [&](auto* x_tag, auto* y_tag, auto wide) {
    using X = std::remove_pointer_t<decltype(x_tag)>;
    using Y = std::remove_pointer_t<decltype(y_tag)>;
    return Launch(stream, RowBlocks(x.rows, CeilDiv(x.cols, kWideElems<X>)), RmsNormKernel<X, Y, decltype(wide)::value>,
                  RowsOf<X>(x), weight, eps, x.rows, static_cast<int>(x.cols), 1.0f / static_cast<float>(x.cols),
                  RowsOf<Y>(y), inv_rms);
  });
}

absl::Status LayerNorm(Stream& stream, const ConstMatrixView& x, const float* weight, const float* bias, float eps,
                       const MatrixView& y, float* mean, float* inv_std) {
  return DispatchNorm(x, y, weight, bias, [&](auto* x_tag, auto* y_tag, auto wide) {
    using X = std::remove_pointer_t<decltype(x_tag)>;
    using Y = std::remove_pointer_t<decltype(y_tag)>;
    return Launch(stream, RowBlocks(x.rows, CeilDiv(x.cols, kWideElems<X>)),
                  LayerNormKernel<X, Y, decltype(wide)::value>, RowsOf<X>(x), weight, bias, eps, x.rows,
                  static_cast<int>(x.cols), 1.0f / static_cast<float>(x.cols), RowsOf<Y>(y), mean, inv_std);
  });
}

}  // namespace cuda
}  // namespace qst
