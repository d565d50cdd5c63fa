#include "kernels/cuda/rotary.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"

namespace qst {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxTokensABlock = 16;

// a' = a cos - b sin,  b' = b cos + a sin  for every pair (j, j + half) of every head, angle = position * inv_freq[j].
// A block has a few tokens. Each of its threads finds cos and sin of one token and frequency, in float64, where GPUs
// for consumers are slow; all heads of the token then use them. More than kThreads frequencies take several rounds.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    RotaryKernel(DeviceRows<T> x, std::int64_t rows, int num_heads, int half, int tokens_a_block,
                 const std::int32_t* positions, const float* inv_freq, bool inverse) {
  __shared__ float cosines[kThreads];
  __shared__ float sines[kThreads];
  constexpr bool kWide = kWidth > 1;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * tokens_a_block;
  const int tokens = static_cast<int>(rows - first_row < tokens_a_block ? rows - first_row : tokens_a_block);
  const int round = half < kThreads ? half : kThreads;  // frequencies
  for (int first = 0; first < half; first += round) {
    const int freqs = half - first < round ? half - first : round;
    if (threadIdx.x < tokens * freqs) {
      const int token = threadIdx.x / freqs;
      const int j = threadIdx.x - token * freqs;
      const double angle = static_cast<double>(positions[first_row + token]) * static_cast<double>(inv_freq[first + j]);
      double sine;
      double cosine;
      sincos(angle, &sine, &cosine);
      cosines[threadIdx.x] = static_cast<float>(cosine);
      sines[threadIdx.x] = static_cast<float>(inverse ? -sine : sine);
    }
    __syncthreads();
    const int groups = freqs / kWidth;
    const int groups_a_token = num_heads * groups;
    for (int i = threadIdx.x; i < tokens * groups_a_token; i += kThreads) {
      const int token = i / groups_a_token;
      const int head = (i - token * groups_a_token) / groups;
      const int j = (i - token * groups_a_token - head * groups) * kWidth;
      T* const at_a = x.at(first_row + token, static_cast<std::int64_t>(head) * 2 * half + first + j);
      float a[kWidth];
      float b[kWidth];
      Load<kWide>(at_a, kWidth, a);
      Load<kWide>(at_a + half, kWidth, b);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float cosine = cosines[token * freqs + j + k];
        const float sine = sines[token * freqs + j + k];
        const float turned = fmaf(a[k], cosine, -(b[k] * sine));
        b[k] = fmaf(b[k], cosine, a[k] * sine);
        a[k] = turned;
      }
      Store<kWide>(a, kWidth, at_a);
      Store<kWide>(b, kWidth, at_a + half);
    }
    __syncthreads();
  }
}

}  // namespace

absl::Status Rotary(Stream& stream, const MatrixView& x, std::int64_t num_heads, const std::int32_t* positions,
                    const float* inv_freq, bool inverse) {
  const int half = static_cast<int>(x.cols / num_heads / 2);
  const int tokens_a_block = std::clamp(kThreads / half, 1, kMaxTokensABlock);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(x.rows, tokens_a_block)));
  shape.block = dim3(kThreads);
  return DispatchFloat(x.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    constexpr int kWidth = kWideElems<T>;
    // kThreads, and with it every round, is a multiple of kWidth.
    const bool is_wide = half % kWidth == 0 && AllowsPacks(x, kWidth);
    return Launch(stream, shape, is_wide ? RotaryKernel<T, kWidth> : RotaryKernel<T, 1>, RowsOf<T>(x), x.rows,
                  static_cast<int>(num_heads), half, tokens_a_block, positions, inv_freq, inverse);
  });
}

}  // namespace cuda
}  // namespace qst
