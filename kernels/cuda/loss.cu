#include "kernels/cuda/loss.h"

#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"

namespace qst {
namespace cuda {
namespace {

constexpr int kWidth = kWideElems<float>;
// So many that a multiprocessor has room for one block: then rows of 32,000 logits that are under way, 17 MB of 132
// blocks, fit in L2 between both passes; with three blocks a multiprocessor they would not.
constexpr int kMaxThreads = 1024;
// Groups that a thread has under way at once.
constexpr int kBatch = 4;

// Products and sums are not fused unless fmaf says so: every path rounds alike.

// What a thread has seen of a row: the largest logit, where it is first, and the sum of exp(x - max).
struct Running {
  float max = -INFINITY;
  int argmax = INT_MAX;
  float sum = 0.0f;

  // exp(x - max) for any max: -inf where all is -inf so far.
  static __device__ __forceinline__ float Exp(float x, float max) { return expf(x - (max == -INFINITY ? 0.0f : max)); }

  // Values of columns [j, j + kWidth), beyond all those before; what is not there is -inf.
  __device__ __forceinline__ void Add(int j, const float (&values)[kWidth]) {
    float new_max = max;
    if (argmax == INT_MAX) argmax = j;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (values[i] > new_max) {
        new_max = values[i];
        argmax = j + i;
      }
    }
    if (new_max != max) {
      sum = __fmul_rn(sum, Exp(max, new_max));
      max = new_max;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum = __fadd_rn(sum, Exp(values[i], max));
  }
};

__device__ __forceinline__ int WarpMin(int x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = min(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// As BlockSum, but the largest and the smallest; other is what the missing warps have.
__device__ __forceinline__ float BlockMax(float x, float* shared) {
  x = WarpMax(x);
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  x = WarpMax(threadIdx.x % kWarpSize < blockDim.x / kWarpSize ? shared[threadIdx.x % kWarpSize] : -INFINITY);
  __syncthreads();
  return x;
}
__device__ __forceinline__ int BlockMin(int x, int* shared) {
  x = WarpMin(x);
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  x = WarpMin(threadIdx.x % kWarpSize < blockDim.x / kWarpSize ? shared[threadIdx.x % kWarpSize] : INT_MAX);
  __syncthreads();
  return x;
}

// visit(first column, values) for the thread's groups in ascending order, kBatch of them loaded before the first is
// visited. Values beyond the row are -inf.
template <bool kWide, typename Visit>
__device__ __forceinline__ void ForEachGroup(const float* row, int vocabulary, const Visit& visit) {
  const int step = static_cast<int>(blockDim.x) * kWidth;
  for (int first = threadIdx.x * kWidth; first < vocabulary; first += kBatch * step) {
    float values[kBatch][kWidth];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) Load<kWide>(row + first + b * step, vocabulary - first - b * step, values[b]);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int j = first + b * step;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (!kWide && j + i >= vocabulary) values[b][i] = -INFINITY;
      }
      if (j < vocabulary) visit(j, values[b]);
    }
  }
}

// loss = log(sum exp(x - max)) - (x[target] - max);  grad = scale (exp(x - max) / sum - [i == target]).
// A block a row: one pass for maximum and sum together, a second one, which finds the row in L2, for the gradient.
template <bool kWide>
__global__ void __launch_bounds__(kMaxThreads)
    CrossEntropyKernel(DeviceRows<float> logits, int vocabulary, const std::int32_t* targets, float scale,
                       bool want_grad, float* losses, std::int32_t* argmax) {
  __shared__ float shared[kWarpSize];
  __shared__ int shared_int[kWarpSize];
  const std::int64_t row = blockIdx.x;
  float* const x = logits.at(row, 0);
  Running seen;
  ForEachGroup<kWide>(x, vocabulary, [&](int j, const float(&values)[kWidth]) { seen.Add(j, values); });
  const float max = BlockMax(seen.max, shared);
  const float sum = BlockSum(__fmul_rn(seen.sum, Running::Exp(seen.max, max)), shared);
  if (argmax != nullptr) {
    const int first = BlockMin(seen.max == max ? seen.argmax : INT_MAX, shared_int);
    if (threadIdx.x == 0) argmax[row] = first;
  }
  const int target = targets[row];
  if (threadIdx.x == 0) {
    losses[row] =
        static_cast<float>(log(static_cast<double>(sum)) - (static_cast<double>(x[target]) - static_cast<double>(max)));
  }
  if (!want_grad) return;
  // The target's logit has been read when others write.
  __syncthreads();
  const float factor = scale / sum;
  ForEachGroup<kWide>(x, vocabulary, [&](int j, const float(&values)[kWidth]) {
    float grads[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      grads[i] = fmaf(expf(values[i] - max), factor, j + i == target ? -scale : 0.0f);
    }
    Store<kWide>(grads, vocabulary - j, x + j);
  });
}

constexpr unsigned kRowThreads = 128;

// loss = (x - target)^2;  grad = 2 scale (x - target). A thread a row.
__global__ void __launch_bounds__(kRowThreads)
    SquaredErrorKernel(DeviceRows<float> predictions, std::int64_t num_rows, const float* targets, float scale,
                       bool want_grad, float* losses) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (row >= num_rows) return;
  float* const x = predictions.at(row, 0);
  const float difference = *x - targets[row];
  losses[row] = __fmul_rn(difference, difference);
  if (want_grad) *x = __fmul_rn(2.0f * scale, difference);
}

}  // namespace

absl::Status SquaredError(Stream& stream, const MatrixView& predictions, const float* targets, float scale,
                          bool want_grad, float* losses) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((predictions.rows + kRowThreads - 1) / kRowThreads));
  shape.block = dim3(kRowThreads);
  return Launch(stream, shape, SquaredErrorKernel, RowsOf<float>(predictions), predictions.rows, targets, scale,
                want_grad, losses);
}

absl::Status CrossEntropy(Stream& stream, const MatrixView& logits, const std::int32_t* targets, float scale,
                          bool want_grad, float* losses, std::int32_t* argmax) {
  const bool is_wide = logits.cols % kWidth == 0 && AllowsPacks(logits, kWidth);
  // As few threads as have one group each, which a row's length alone says.
  unsigned threads = kWarpSize;
  while (threads < kMaxThreads && static_cast<std::int64_t>(threads) * kWidth < logits.cols) threads *= 2;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(logits.rows));
  shape.block = dim3(threads);
  return Launch(stream, shape, is_wide ? CrossEntropyKernel<true> : CrossEntropyKernel<false>, RowsOf<float>(logits),
                static_cast<int>(logits.cols), targets, scale, want_grad, losses, argmax);
}

}  // namespace cuda
}  // namespace qst
