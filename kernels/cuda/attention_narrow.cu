// Attention of narrow heads (side network) on tensor cores, as exact as in float32 (attention_fragments.cuh). A warp
// has 16 rows of one head; the warps of a block share tiles of keys and values in shared memory. Nothing of size T x T
// is stored. Backward is in attention_narrow_backward.cu.
//
// Tiles are counted from the start of the sequence, and every sum runs in one order, in which what a row does not see
// counts as zeros: a row's bits depend on its own sequence alone. Nor does it see infinities or NaN of others: rows
// beyond the sequence are loaded as zeros, and those that only some rows of a warp see go through HideNonFinite.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_fragments.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_narrow.cuh"
#include "kernels/cuda/attention_parameters.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"

namespace qst {
namespace cuda {
namespace {

// Of 8 keys: as many scores are in registers at a time.
template <int S>
constexpr int kChunkSteps = S == 1 ? 4 : 2;
// Weights are powers of 2 of scores less a shift. It is raised to a row's largest score once that is so much above it:
// rarely, and before weights grow beyond what float32 can hold.
constexpr float kSlack = 8.0f;
constexpr float kNoShift = -1e38f;  // below all scores

// On a multiprocessor at a time, at least: what registers allow without spilling.
template <int S>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocks = 2;
#else
constexpr int kBlocks = S == 1 ? 3 : 2;
#endif

// What a warp's rows have seen so far.
template <int S>
struct Softmax {
  float shift[2] = {kNoShift, kNoShift};
  float sum[2] = {0.0f, 0.0f};  // this lane's share
  TiledSum<S> values;

  // `largest` is the largest of this lane's next scores of each row.
  __device__ __forceinline__ void RaiseShifts(const float (&largest)[2]) {
    const unsigned first = __ballot_sync(kAllLanes, largest[0] > shift[0] + kSlack);
    const unsigned second = __ballot_sync(kAllLanes, largest[1] > shift[1] + kSlack);
    if ((first | second) == 0) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Whether a lane of this row asks for it: other rows change none of its bits.
      const unsigned lanes_of_row = 15u << (threadIdx.x % kWarpSize / 4 * 4);
      const bool is_raised = ((h == 0 ? first : second) & lanes_of_row) != 0;
      const float row_max = RowMax(largest[h]);
      const float new_shift = is_raised ? row_max : shift[h];
      const float factor = is_raised ? Exp2(shift[h] - new_shift) : 1.0f;
      shift[h] = new_shift;
      sum[h] = __fmul_rn(sum[h], factor);
      values.ScaleRow(h, factor);
    }
  }
};

// Columns of a tile that this lane's rows see: row g the ones in (last - window, last], row g + 8 those 8 further.
struct Seen {
  int last;
  int window;

  __device__ __forceinline__ bool operator()(int h, int column) const {
    return column <= last + 8 * h && column > last + 8 * h - window;
  }
};

// A tile's keys and values, which all rows see unless kIsPartial; else they see steps [begin_step, end_step), or a
// part.
template <int S, bool kIsPartial>
__device__ __forceinline__ void ForwardTile(const RowFragments<S>& q, const SplitTile<S>& keys,
                                            const SplitTile<S>& values, const Place& place, const Seen& seen,
                                            int begin_step, int end_step, Softmax<S>& state) {
#pragma unroll 1
  for (int chunk = 0; chunk < kSplitSteps; chunk += kChunkSteps<S>) {
    float scores[kChunkSteps<S>][4];
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kChunkSteps<S>; ++n) {
      if (kIsPartial && (chunk + n < begin_step || chunk + n >= end_step)) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] = -INFINITY;
        continue;
      }
      MultiplyRows<true>(q, keys.lanes[chunk + n], scores[n]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kIsPartial && !seen(i / 2, 8 * (chunk + n) + place.column + i % 2)) scores[n][i] = -INFINITY;
        largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
      }
    }
    state.RaiseShifts(largest);
#pragma unroll
    for (int n = 0; n < kChunkSteps<S>; ++n) {
      if (kIsPartial && (chunk + n < begin_step || chunk + n >= end_step)) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = Exp2(scores[n][i] - state.shift[i / 2]);
        state.sum[i / 2] = __fadd_rn(state.sum[i / 2], scores[n][i]);
      }
      state.values.template Add<kIsPartial>(WeightFragment(scores[n]), values.lanes[chunk + n],
                                            [&](int h, int j) { return seen(h, 8 * (chunk + n) + j); });
    }
  }
  state.values.Flush();
}

// out = softmax(scale q k^T) v over the keys that a row sees, log_sum_exp of its scaled scores.
template <int S>
__global__ void __launch_bounds__(kSplitThreads, kBlocks<S>) NarrowForwardKernel(const AttentionParameters p) {
  __shared__ SplitTile<S> keys;
  __shared__ SplitTile<S> values;
  // The last tiles of a sequence see the most keys: they go first.
  const Place place = FindPlace(p, gridDim.x - 1 - blockIdx.x);
  if (place.first_row >= place.num_queries) return;
  const int head = blockIdx.y;
  const int kv_head = head / p.group;
  // The last key that the warp's first row sees, and how many each row sees.
  const int last_key = place.num_keys - place.num_queries + place.warp_row;
  const int no_window = place.num_keys + kNarrowRows;
  const int window = p.window == 0 ? no_window : min(p.window, no_window);
  const int block_last = place.num_keys - place.num_queries + place.first_row;
  const int end_key = min(block_last + kNarrowRows, place.num_keys);

  float2 k_next[S];
  float2 v_next[S];
  const auto fetch = [&](int begin) {
    const int count = place.num_keys - begin;
    FetchRows<S>(p.k, place.k_begin + begin, count, kv_head, p.width, k_next);
    FetchColumns<S>(p.v, place.k_begin + begin, count, kv_head, p.width, v_next);
  };
  int begin = max(block_last + 1 - window, 0) / kSplitRows * kSplitRows;
  fetch(begin);
  RowFragments<S> q;
  {
    float2 pairs[2][S];
    LoadRows<S>(p.q, place.q_begin, place, place.num_queries, head, p.width, pairs);
    Scale<S>(p.scale * kLog2E, pairs[0]);
    Scale<S>(p.scale * kLog2E, pairs[1]);
    q.Set(pairs);
  }
  Softmax<S> state;
  const bool has_rows = place.warp_row < place.num_queries;
  for (; begin < end_key; begin += kSplitRows) {
    __syncthreads();
    keys.Store(k_next);
    values.Store(v_next);
    __syncthreads();
    if (begin + kSplitRows < end_key) fetch(begin + kSplitRows);
    if (!has_rows) continue;
    const int last = last_key - begin;
    const int begin_step = max(last + 1 - window, 0) / 8;
    const int end_step = min(min(last + kWarpRows - 1, place.num_keys - 1 - begin), kSplitRows - 1) / 8 + 1;
    const Seen seen = {last + place.row, window};
    if (last >= kSplitRows - 1 && last + kWarpRows <= window) {
      ForwardTile<S, false>(q, keys, values, place, seen, 0, kSplitSteps, state);
    } else if (last + kWarpRows - 1 >= 0 && begin_step < kSplitSteps) {
      ForwardTile<S, true>(q, keys, values, place, seen, begin_step, end_step, state);
    }
  }
  if (!has_rows) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) state.sum[h] = RowSum(state.sum[h]);
  const float inverse[2] = {1.0f / state.sum[0], 1.0f / state.sum[1]};
  StoreRows<S>(p.out, place.q_begin, place, place.num_queries, head, p.width, [&](int h, int s) {
    const float2 x = state.values.Pair(h, s);
    return make_float2(x.x * inverse[h], x.y * inverse[h]);
  });
  if (p.log_sum_exp == nullptr || place.column != 0) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = place.warp_row + place.row + 8 * h;
    if (row >= place.num_queries) continue;
    p.log_sum_exp[(place.q_begin + row) * p.num_heads + head] = fmaf(state.shift[h], kLn2, logf(state.sum[h]));
  }
}

}  // namespace

absl::Status NarrowAttention(Stream& stream, const AttentionOperands& x) {
  const AttentionParameters p = ForwardParameters(x);
  const LaunchShape shape = NarrowShape(x.q.rows, x.q_offsets.num, x.shape.num_heads);
  return p.width <= 8 ? Launch(stream, shape, NarrowForwardKernel<1>, p)
                      : Launch(stream, shape, NarrowForwardKernel<2>, p);
}

}  // namespace cuda
}  // namespace qst
