// Products of attention over narrow heads on tensor cores, as exact as float32: every factor is a sum of two TF32
// numbers, and their products are added up, small ones first; the smallest of the four counts in exponents only.
//
// A head is padded to 8 S channels, S steps of the instruction (mma.cuh; g = lane / 4, t = lane % 4). In which order a
// product runs over its inner dimension is free, as long as both factors agree: position t of a step is here element
// 2t, position t + 4 element 2t + 1. So a lane reads neighbours, and the weights of 16 rows x 8 columns that an
// instruction has left in a lane are what the next one wants from that lane.
#ifndef QST_KERNELS_CUDA_ATTENTION_FRAGMENTS_CUH_
#define QST_KERNELS_CUDA_ATTENTION_FRAGMENTS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numeric.cuh"

namespace qst {
namespace cuda {

// ---- Operands -------------------------------------------------------------------------------------

// Channels `column` (even) and the next of a head; those from `width` on are zero, and all if not is_row.
__device__ __forceinline__ float2 LoadPair(const AnyMatrix& m, bool is_row, std::int64_t row, int head, int width,
                                           int column) {
  float2 x = make_float2(0.0f, 0.0f);
  if (m.dtype == DType::kF32 && m.is_wide) {
    if (is_row && column < width) {
      x = *reinterpret_cast<const float2*>(static_cast<const float*>(m.data) + row * m.ld + head * width + column);
    }
    return x;
  }
  if (is_row && column < width) x.x = m.Load(row, head * width + column);
  if (is_row && column + 1 < width) x.y = m.Load(row, head * width + column + 1);
  return x;
}

__device__ __forceinline__ void StorePair(const AnyMatrix& m, std::int64_t row, int head, int width, int column,
                                          float2 x) {
  if (m.dtype == DType::kF32 && m.is_wide) {
    if (column >= width) return;
    *reinterpret_cast<float2*>(static_cast<float*>(m.data) + row * m.ld + head * width + column) = x;
    return;
  }
  if (column < width) m.Store(row, head * width + column, x.x);
  if (column + 1 < width) m.Store(row, head * width + column + 1, x.y);
}

template <int S>
__device__ __forceinline__ void Scale(float factor, float2 (&x)[S]) {
#pragma unroll
  for (int s = 0; s < S; ++s) x[s] = make_float2(__fmul_rn(x[s].x, factor), __fmul_rn(x[s].y, factor));
}

// 16 rows of a warp as left factors.
template <int S>
struct RowFragments {
  std::uint32_t high[S][4];
  std::uint32_t low[S][4];

  // pairs[h][s]: channels 8 s + 2 t and the next of row g + 8 h.
  __device__ __forceinline__ void Set(const float2 (&pairs)[2][S]) {
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        SplitTf32(pairs[h][s].x, high[s][h], low[s][h]);
        SplitTf32(pairs[h][s].y, high[s][h + 2], low[s][h + 2]);
      }
    }
  }
};

constexpr int kSplitRows = 64;  // of a tile in shared memory
constexpr int kSplitSteps = kSplitRows / 8;
constexpr int kSplitThreads = kSplitSteps * kWarpSize;  // load it together: 8 rows a warp

// A tile as right factors, in the order in which lanes read them: high parts of two elements, then their low parts.
template <int S>
struct SplitTile {
  uint4 lanes[kSplitSteps][S][kWarpSize];

  // What FetchRows or FetchColumns has brought to this thread.
  __device__ __forceinline__ void Store(const float2 (&x)[S]) {
#pragma unroll
    for (int s = 0; s < S; ++s) {
      uint4 split;
      SplitTf32(x[s].x, split.x, split.z);
      SplitTf32(x[s].y, split.y, split.w);
      lanes[threadIdx.x / kWarpSize][s][threadIdx.x % kWarpSize] = split;
    }
  }
};

// This thread's part of rows [begin, begin + count) of a head, zeros from `count` on, for a product over channels.
template <int S>
__device__ __forceinline__ void FetchRows(const AnyMatrix& m, std::int64_t begin, int count, int head, int width,
                                          float2 (&x)[S]) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = threadIdx.x / kWarpSize * 8 + lane / 4;
#pragma unroll
  for (int s = 0; s < S; ++s) x[s] = LoadPair(m, row < count, begin + row, head, width, 8 * s + lane % 4 * 2);
}

// The same for a product over the rows.
template <int S>
__device__ __forceinline__ void FetchColumns(const AnyMatrix& m, std::int64_t begin, int count, int head, int width,
                                             float2 (&x)[S]) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = threadIdx.x / kWarpSize * 8 + lane % 4 * 2;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const int column = 8 * s + lane / 4;
    x[s].x = row < count && column < width ? m.Load(begin + row, head * width + column) : 0.0f;
    x[s].y = row + 1 < count && column < width ? m.Load(begin + row + 1, head * width + column) : 0.0f;
  }
}

// ---- Products -------------------------------------------------------------------------------------

// c [16, 8] = rows times 8 rows of the tile. kIsExponent: with the smallest of the four products too, since an error of
// an exponent is one of the weight, and multiplied by its size.
template <bool kIsExponent, int S>
__device__ __forceinline__ void MultiplyRows(const RowFragments<S>& rows, const uint4 (&tile)[S][kWarpSize],
                                             float (&c)[4]) {
  const int lane = threadIdx.x % kWarpSize;
  uint4 b[S];
#pragma unroll
  for (int s = 0; s < S; ++s) b[s] = tile[s][lane];
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] = 0.0f;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if constexpr (kIsExponent) MmaTf32(c, rows.low[s], b[s].z, b[s].w);
    MmaTf32(c, rows.low[s], b[s].x, b[s].y);
    MmaTf32(c, rows.high[s], b[s].z, b[s].w);
  }
#pragma unroll
  for (int s = 0; s < S; ++s) MmaTf32(c, rows.high[s], b[s].x, b[s].y);
}

// 16 rows x 8 columns as an instruction has left them, as left factor. The low part may have two bits more than the
// instruction looks at: 2^-21 of the weight.
struct WeightFragment {
  std::uint32_t high[4];
  std::uint32_t low[4];

  __device__ __forceinline__ explicit WeightFragment(const float (&c)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = c[i / 2 + i % 2 * 2];
      high[i] = __float_as_uint(x) & 0xffffe000u;
      low[i] = __float_as_uint(__fadd_rn(x, -__uint_as_float(high[i])));
    }
  }
};

// Of a tile of which rows see a part: infinities and NaN among its elements become zeros, since a weight of zero does
// not hide them; sums of the rows that see one become NaN. sees(h, j): row g + 8 h sees the tile's row j.
template <typename Sees>
__device__ __forceinline__ void HideNonFinite(uint4& b, float (&sum)[4], const Sees& sees) {
  const auto is_bad = [](std::uint32_t x) { return (x & 0x7f800000u) == 0x7f800000u; };
  if (!__any_sync(kAllLanes, is_bad(b.x) || is_bad(b.y))) return;
  const unsigned bad_even = __ballot_sync(kAllLanes, is_bad(b.x));
  const unsigned bad_odd = __ballot_sync(kAllLanes, is_bad(b.y));
  // Rare: as few registers as may be. Four lanes have a channel's elements, two each.
#pragma unroll 1
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int lane = 4 * (threadIdx.x % 4 * 2 + i % 2) + j;
      if ((bad_even >> lane) % 2 == 1 && sees(i / 2, 2 * j)) sum[i] = NAN;
      if ((bad_odd >> lane) % 2 == 1 && sees(i / 2, 2 * j + 1)) sum[i] = NAN;
    }
  }
  if (is_bad(b.x)) b.x = b.z = 0;
  if (is_bad(b.y)) b.y = b.w = 0;
}

// Sums [16, 8 S] over rows of tiles. Tensor cores cut off what does not fit where the largest term lies: small terms
// have a sum of their own, and sums over many tiles are for ordinary additions.
template <int S>
struct TiledSum {
  float total[S][4] = {};
  float large[S][4] = {};  // of the tiles since the last Flush
  float small[S][4] = {};

  // Adds weights [16, 8] times 8 rows of a tile. kIsPartial: some rows do not see all of these.
  template <bool kIsPartial, typename Sees>
  __device__ __forceinline__ void Add(const WeightFragment& weights, const uint4 (&tile)[S][kWarpSize],
                                      const Sees& sees) {
#pragma unroll
    for (int s = 0; s < S; ++s) {
      uint4 b = tile[s][threadIdx.x % kWarpSize];
      if constexpr (kIsPartial) HideNonFinite(b, large[s], sees);
      MmaTf32(small[s], weights.low, b.x, b.y);
      MmaTf32(large[s], weights.high, b.x, b.y);
      MmaTf32(small[s], weights.high, b.z, b.w);
    }
  }

  __device__ __forceinline__ void Flush() {
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        total[s][i] = __fadd_rn(total[s][i], large[s][i]);
        large[s][i] = 0.0f;
      }
    }
  }

  // Elements of row g + 8 h.
  __device__ __forceinline__ void ScaleRow(int h, float factor) {
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        total[s][2 * h + i] = __fmul_rn(total[s][2 * h + i], factor);
        large[s][2 * h + i] = __fmul_rn(large[s][2 * h + i], factor);
        small[s][2 * h + i] = __fmul_rn(small[s][2 * h + i], factor);
      }
    }
  }

  // Channels 8 s + 2 t and the next of row g + 8 h, after Flush.
  __device__ __forceinline__ float2 Pair(int h, int s) const {
    return make_float2(__fadd_rn(total[s][2 * h], small[s][2 * h]),
                       __fadd_rn(total[s][2 * h + 1], small[s][2 * h + 1]));
  }
};

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ATTENTION_FRAGMENTS_CUH_
