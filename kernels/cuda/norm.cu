#include "kernels/cuda/norm.h"

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"

namespace qst {
namespace cuda {
namespace {

// A block a row. The order in which a row's squares are summed depends on d alone.
constexpr int kThreads = 256;

// y = x / sqrt(mean(x^2) + eps) * weight
template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(const X* x, std::int64_t ldx, const float* weight, float eps, int d, Y* y, std::int64_t ldy,
                  float* inv_rms) {
  __shared__ float shared[kWarpSize];
  const X* const x_row = x + blockIdx.x * ldx;
  Y* const y_row = y + blockIdx.x * ldy;
  float sum = 0.0f;
  for (int j = threadIdx.x; j < d; j += kThreads) {
    const float value = ToFloat(x_row[j]);
    sum += value * value;
  }
  sum = BlockSum(sum, shared);
  const float inv = 1.0f / sqrtf(sum / static_cast<float>(d) + eps);
  for (int j = threadIdx.x; j < d; j += kThreads) y_row[j] = FromFloat<Y>(ToFloat(x_row[j]) * inv * weight[j]);
  if (inv_rms != nullptr && threadIdx.x == 0) inv_rms[blockIdx.x] = inv;
}

}  // namespace

absl::Status RmsNorm(Stream& stream, const ConstMatrixView& x, const float* weight, float eps, const MatrixView& y,
                     float* inv_rms) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(x.rows));
  shape.block = dim3(kThreads);
  return DispatchFloat(x.dtype, [&](auto* x_tag) {
    using X = std::remove_pointer_t<decltype(x_tag)>;
    return DispatchFloat(y.dtype, [&](auto* y_tag) {
      using Y = std::remove_pointer_t<decltype(y_tag)>;
      return Launch(stream, shape, RmsNormKernel<X, Y>, x.row<X>(0), x.ld, weight, eps, static_cast<int>(x.cols),
                    y.row<Y>(0), y.ld, inv_rms);
    });
  });
}

}  // namespace cuda
}  // namespace qst
