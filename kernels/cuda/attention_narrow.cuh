// What the kernels of narrow heads share (attention_narrow.cu, attention_narrow_backward.cu): a block has
// kNarrowRows rows of one head, a warp 16 of them; each lane holds some channels of two rows.
#ifndef QST_KERNELS_CUDA_ATTENTION_NARROW_CUH_
#define QST_KERNELS_CUDA_ATTENTION_NARROW_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_fragments.cuh"
#include "kernels/cuda/attention_parameters.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/numeric.cuh"

namespace qst {
namespace cuda {

constexpr int kWarpRows = 16;
constexpr int kNarrowRows = kSplitThreads / kWarpSize * kWarpRows;  // of a block

// Where a block's rows lie.
struct Place {
  int q_begin, k_begin;
  int num_queries, num_keys;
  int first_row;  // of the block
  int warp_row;   // of this warp
  int row;        // of this lane, in its warp's 16: this one and the one 8 further
  int column;     // of this lane, in 8: this one and the next
};

// `slot` is as in FindTile. All lanes of a warp call together.
__device__ __forceinline__ Place FindPlace(const AttentionParameters& p, int slot) {
  const Tile tile = FindTile(p.q_offsets, p.num_sequences, 1, kNarrowRows, slot);
  Place place;
  place.q_begin = p.q_offsets[tile.sequence];
  place.k_begin = p.k_offsets[tile.sequence];
  place.num_queries = p.q_offsets[tile.sequence + 1] - place.q_begin;
  place.num_keys = p.k_offsets[tile.sequence + 1] - place.k_begin;
  place.first_row = static_cast<int>(tile.first_row);
  place.warp_row = place.first_row + static_cast<int>(threadIdx.x) / kWarpSize * kWarpRows;
  place.row = threadIdx.x % kWarpSize / 4;
  place.column = threadIdx.x % 4 * 2;
  return place;
}

// This lane's channels of its two rows; rows from `length` on are zero.
template <int S>
__device__ __forceinline__ void LoadRows(const AnyMatrix& m, std::int64_t begin, const Place& place, int length,
                                         int head, int width, float2 (&pairs)[2][S]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = place.warp_row + place.row + 8 * h;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      pairs[h][s] = LoadPair(m, row < length, begin + row, head, width, 8 * s + place.column);
    }
  }
}

// pair(h, s) are channels 8 s + 2 t and the next of row g + 8 h of a warp.
template <int S, typename Pair>
__device__ __forceinline__ void StoreRows(const AnyMatrix& m, std::int64_t begin, const Place& place, int length,
                                          int head, int width, const Pair& pair) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = place.warp_row + place.row + 8 * h;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      if (row < length) StorePair(m, begin + row, head, width, 8 * s + place.column, pair(h, s));
    }
  }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float RowSum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float RowMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

inline LaunchShape NarrowShape(std::int64_t num_tokens, std::int64_t num_sequences, std::int64_t heads) {
  return TileShape(num_tokens, num_sequences, heads, kNarrowRows, kSplitThreads);
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ATTENTION_NARROW_CUH_
