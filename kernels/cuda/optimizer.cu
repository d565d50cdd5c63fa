#include "kernels/cuda/optimizer.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = kWideElems<float>;

// Enough blocks for every multiprocessor to be full; each goes over the elements in strides of the whole grid.
constexpr int kBlocksAMultiprocessor = 8;

// AdamWParams with what depends on the step alone worked out.
struct AdamWFactors {
  float learning_rate;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float epsilon;
  float weight_decay;
  float correction1;  // 1 / (1 - beta1^step)
  float correction2;  // 1 / (1 - beta2^step)
};

// s = grad_scale * min(1, clip_norm / norm), the norm being the root of a sum of squares on the device.
struct AdamWScale {
  float grad_scale;
  double clip_norm;              // 0: no clipping
  const double* sum_of_squares;  // null: s = grad_scale

  // False: the norm is not finite.
  __device__ __forceinline__ bool Evaluate(float* s) const {
    *s = grad_scale;
    if (sum_of_squares == nullptr) return true;
    const double norm = sqrt(*sum_of_squares);
    if (!std::isfinite(norm)) return false;
    if (clip_norm > 0.0 && norm > clip_norm) {
      *s = static_cast<float>(static_cast<double>(grad_scale) * (clip_norm / norm));
    }
    return true;
  }
};

__device__ __forceinline__ void AdamWElement(const AdamWFactors& f, float grad, float* param, float* exp_avg,
                                             float* exp_avg_sq) {
  const float m = fmaf(f.beta1, *exp_avg, f.one_minus_beta1 * grad);
  const float v = fmaf(f.beta2, *exp_avg_sq, f.one_minus_beta2 * (grad * grad));
  const float step = m * f.correction1 / (sqrtf(v * f.correction2) + f.epsilon);
  *param = fmaf(-f.learning_rate, fmaf(f.weight_decay, *param, step), *param);
  *exp_avg = m;
  *exp_avg_sq = v;
}

// The formula of ops.h, with s from the sum of squares where there is one; nothing if that is not finite. The launch
// bounds ask for one block a multiprocessor: for more, registers would be spilled.
template <bool kWide>
__global__ void __launch_bounds__(kThreads, 1)
    AdamWKernel(AdamWFactors f, AdamWScale scale, std::int64_t n, float* param, const float* grad, float* exp_avg,
                float* exp_avg_sq) {
  // Once a block: float64 is slow on some GPUs.
  __shared__ float shared_scale;
  __shared__ bool is_finite;
  if (threadIdx.x == 0) is_finite = scale.Evaluate(&shared_scale);
  __syncthreads();
  if (!is_finite) return;
  const float s = shared_scale;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kWidth;
  for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth; i < n; i += step) {
    const std::int64_t count = n - i;
    if (kWide && count >= kWidth) {
      float p[kWidth];
      float g[kWidth];
      float m[kWidth];
      float v[kWidth];
      Load<true>(param + i, kWidth, p);
      Load<true>(grad + i, kWidth, g);
      Load<true>(exp_avg + i, kWidth, m);
      Load<true>(exp_avg_sq + i, kWidth, v);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) AdamWElement(f, g[k] * s, &p[k], &m[k], &v[k]);
      Store<true>(p, kWidth, param + i);
      Store<true>(m, kWidth, exp_avg + i);
      Store<true>(v, kWidth, exp_avg_sq + i);
    } else {
      for (std::int64_t k = i; k < i + kWidth && k < n; ++k) {
        AdamWElement(f, grad[k] * s, param + k, exp_avg + k, exp_avg_sq + k);
      }
    }
  }
}

// Every thread gets the sum. `shared` holds kThreads doubles.
__device__ __forceinline__ double BlockSumWide(double x, double* shared) {
  shared[threadIdx.x] = x;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  return shared[0];
}

constexpr int kGroupsAThread = 8;
constexpr std::int64_t kChunk = std::int64_t{kThreads} * kGroupsAThread * kWidth;

// A chunk of kChunk elements a block.
template <bool kWide>
__global__ void __launch_bounds__(kThreads) SquaresOfChunksKernel(const float* x, std::int64_t n, double* partials) {
  __shared__ double shared[kThreads];
  const std::int64_t first = blockIdx.x * kChunk + threadIdx.x * kWidth;
  double sum = 0.0;
#pragma unroll
  for (int group = 0; group < kGroupsAThread; ++group) {
    const std::int64_t i = first + group * kThreads * kWidth;
    float values[kWidth];
    if (kWide && n - i >= kWidth) {
      Load<true>(x + i, kWidth, values);
    } else {
      Load<false>(x + i, n - i, values);
    }
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum = fma(static_cast<double>(values[k]), static_cast<double>(values[k]), sum);
  }
  sum = BlockSumWide(sum, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block; thread t has partial sums t, t + kThreads, ...
__global__ void __launch_bounds__(kThreads) SumPartialsKernel(const double* partials, std::int64_t num, double* sum) {
  __shared__ double shared[kThreads];
  double total = 0.0;
  for (std::int64_t i = threadIdx.x; i < num; i += kThreads) total += partials[i];
  total = BlockSumWide(total, shared);
  if (threadIdx.x == 0) *sum = total;
}

}  // namespace

absl::Status AdamW(Stream& stream, const AdamWParams& params, std::int64_t n, float* param, const float* grad,
                   float* exp_avg, float* exp_avg_sq) {
  const double step = static_cast<double>(params.step);
  const double beta1 = static_cast<double>(params.beta1);
  const double beta2 = static_cast<double>(params.beta2);
  AdamWFactors f;
  f.learning_rate = params.learning_rate;
  f.beta1 = params.beta1;
  f.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  f.beta2 = params.beta2;
  f.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  f.epsilon = params.epsilon;
  f.weight_decay = params.weight_decay;
  f.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step)));
  f.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step)));
  const AdamWScale scale{params.grad_scale, params.clip_norm, params.sum_of_squares};
  const bool is_wide = AllowsPacks(param, kWidth) && AllowsPacks(grad, kWidth) && AllowsPacks(exp_avg, kWidth) &&
                       AllowsPacks(exp_avg_sq, kWidth);
  const std::int64_t blocks = std::min<std::int64_t>(CeilDiv(n, std::int64_t{kThreads} * kWidth),
                                                     std::int64_t{stream.num_multiprocessors} * kBlocksAMultiprocessor);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks));
  shape.block = dim3(kThreads);
  return Launch(stream, shape, is_wide ? AdamWKernel<true> : AdamWKernel<false>, f, scale, n, param, grad, exp_avg,
                exp_avg_sq);
}

absl::Status SumOfSquares(Stream& stream, const float* x, std::int64_t n, double* sum) {
  const std::int64_t chunks = CeilDiv(n, kChunk);
  QST_ASSIGN_OR_RETURN(void* const scratch, stream.Scratch(chunks * static_cast<std::int64_t>(sizeof(double))));
  double* const partials = static_cast<double*>(scratch);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(chunks));
  shape.block = dim3(kThreads);
  QST_RETURN_IF_ERROR(Launch(stream, shape,
                             AllowsPacks(x, kWidth) ? SquaresOfChunksKernel<true> : SquaresOfChunksKernel<false>, x, n,
                             partials));
  shape.grid = dim3(1);
  return Launch(stream, shape, SumPartialsKernel, partials, chunks, sum);
}

}  // namespace cuda
}  // namespace qst
