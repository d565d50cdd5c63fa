// Backward of attention_narrow.cu, likewise on tensor cores and as exact as float32: the probabilities are computed
// again from log_sum_exp. Rows own queries for grad_q, and keys for grad_k and grad_v.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_fragments.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_narrow.cuh"
#include "kernels/cuda/attention_parameters.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

// Whether registers have room for the next tile while one is worked on.
template <int S>
constexpr bool kFetchesAhead = S == 1;
// Steps of a tile that are worked on side by side.
template <int S, bool kIsPartial>
constexpr int kStepsAtOnce = kIsPartial || S == 2 ? 1 : 2;

// With P the probabilities and D = dot(grad_out, out): dS = P (grad_out v^T - D), grad_q = scale dS k.
template <int S>
struct GradQueryTile {
  SplitTile<S> k_rows, v_rows, k_columns;

  // All rows see all of the tile unless kIsPartial; else this lane's row g sees columns up to `last`, row g + 8 so many
  // more, and the warp's rows steps before end_step.
  template <bool kIsPartial>
  __device__ __forceinline__ void AddTo(const RowFragments<S>& q, const RowFragments<S>& grad,
                                        const float (&lse_log2)[2], const float (&dot)[2], const Place& place, int last,
                                        int end_step, TiledSum<S>& sum) const {
    constexpr int kUnroll = kStepsAtOnce<S, kIsPartial>;
#pragma unroll kUnroll
    for (int n = 0; n < kSplitSteps; ++n) {
      if (kIsPartial && n >= end_step) break;
      float score[4];
      float grad_score[4];
      MultiplyRows<true>(q, k_rows.lanes[n], score);
      MultiplyRows<false>(grad, v_rows.lanes[n], grad_score);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        grad_score[i] = Exp2(score[i] - lse_log2[i / 2]) * (grad_score[i] - dot[i / 2]);
        if (kIsPartial && 8 * n + place.column + i % 2 > last + i / 2 * 8) grad_score[i] = 0.0f;
      }
      sum.template Add<kIsPartial>(WeightFragment(grad_score), k_columns.lanes[n],
                                   [&](int h, int j) { return 8 * n + j <= last + 8 * h; });
    }
    sum.Flush();
  }
};

template <int S>
__global__ void __launch_bounds__(kSplitThreads, S == 1 ? 3 : 2) NarrowGradQueryKernel(const AttentionParameters p) {
  __shared__ GradQueryTile<S> tile;
  const Place place = FindPlace(p, gridDim.x - 1 - blockIdx.x);
  const int length = place.num_queries;
  if (place.first_row >= length) return;
  const int head = blockIdx.y;
  const int kv_head = head / p.group;
  const int end_key = min(place.first_row + kNarrowRows, length);

  float2 k_rows[S];
  float2 v_rows[S];
  float2 k_columns[S];
  const auto fetch = [&](int begin) {
    FetchRows<S>(p.k, place.q_begin + begin, length - begin, kv_head, p.width, k_rows);
    FetchRows<S>(p.v, place.q_begin + begin, length - begin, kv_head, p.width, v_rows);
    FetchColumns<S>(p.k, place.q_begin + begin, length - begin, kv_head, p.width, k_columns);
  };
  if (kFetchesAhead<S>) fetch(0);
  RowFragments<S> q;
  RowFragments<S> grad;
  float lse_log2[2] = {0.0f, 0.0f};
  float dot[2] = {0.0f, 0.0f};
  {
    float2 pairs[2][S];
    float2 out[2][S];
    LoadRows<S>(p.q, place.q_begin, place, length, head, p.width, pairs);
    Scale<S>(p.scale * kLog2E, pairs[0]);
    Scale<S>(p.scale * kLog2E, pairs[1]);
    q.Set(pairs);
    LoadRows<S>(p.grad_out, place.q_begin, place, length, head, p.width, pairs);
    grad.Set(pairs);
    LoadRows<S>(p.out, place.q_begin, place, length, head, p.width, out);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
        dot[h] = fmaf(pairs[h][s].x, out[h][s].x, dot[h]);
        dot[h] = fmaf(pairs[h][s].y, out[h][s].y, dot[h]);
      }
      dot[h] = RowSum(dot[h]);
      const int row = place.warp_row + place.row + 8 * h;
      if (row >= length) continue;
      const int at = (place.q_begin + row) * p.num_heads + head;
      lse_log2[h] = p.read_log_sum_exp[at] * kLog2E;
      if (place.column == 0) p.grad_dot[at] = dot[h];
    }
  }
  TiledSum<S> sum;
  const bool has_rows = place.warp_row < length;
  for (int begin = 0; begin < end_key; begin += kSplitRows) {
    __syncthreads();
    if (!kFetchesAhead<S>) fetch(begin);
    tile.k_rows.Store(k_rows);
    tile.v_rows.Store(v_rows);
    tile.k_columns.Store(k_columns);
    __syncthreads();
    if (kFetchesAhead<S> && begin + kSplitRows < end_key) fetch(begin + kSplitRows);
    const int last_any = min(place.warp_row + kWarpRows, length) - 1 - begin;
    if (!has_rows || last_any < 0) continue;
    const int last = place.warp_row + place.row - begin;
    if (place.warp_row - begin >= kSplitRows - 1) {
      tile.template AddTo<false>(q, grad, lse_log2, dot, place, last, kSplitSteps, sum);
    } else {
      tile.template AddTo<true>(q, grad, lse_log2, dot, place, last, last_any / 8 + 1, sum);
    }
  }
  if (!has_rows) return;
  StoreRows<S>(p.grad_q, place.q_begin, place, length, head, p.width, [&](int h, int s) {
    const float2 x = sum.Pair(h, s);
    return make_float2(x.x * p.scale, x.y * p.scale);
  });
}

// grad_v = P^T grad_out, grad_k = scale dS^T q, over the queries that see a key, those of the group's heads in order.
template <int S>
struct GradKeyTile {
  SplitTile<S> q_rows, grad_rows, q_columns, grad_columns;
  float lse_log2[kSplitRows];
  float dot[kSplitRows];

  // All of the tile's queries see all rows unless kIsPartial; else this lane's row g is seen by those from `first` on,
  // row g + 8 by those from 8 further on, and the warp's rows by steps from begin_step on.
  template <bool kIsPartial>
  __device__ __forceinline__ void AddTo(const RowFragments<S>& k, const RowFragments<S>& v, const Place& place,
                                        int first, int begin_step, TiledSum<S>& k_sum, TiledSum<S>& v_sum) const {
    constexpr int kUnroll = kStepsAtOnce<S, kIsPartial>;
#pragma unroll kUnroll
    for (int n = 0; n < kSplitSteps; ++n) {
      if (kIsPartial && n < begin_step) continue;
      const float2 lse = *reinterpret_cast<const float2*>(&lse_log2[8 * n + place.column]);
      const float2 dots = *reinterpret_cast<const float2*>(&dot[8 * n + place.column]);
      const auto is_seen = [&](int i) { return !kIsPartial || 8 * n + place.column + i % 2 >= first + i / 2 * 8; };
      const auto sees = [&](int h, int j) { return 8 * n + j >= first + 8 * h; };
      float weight[4];
      MultiplyRows<true>(k, q_rows.lanes[n], weight);
#pragma unroll
      for (int i = 0; i < 4; ++i) weight[i] = is_seen(i) ? Exp2(weight[i] - (i % 2 == 0 ? lse.x : lse.y)) : 0.0f;
      v_sum.template Add<kIsPartial>(WeightFragment(weight), grad_columns.lanes[n], sees);
      float grad_score[4];
      MultiplyRows<false>(v, grad_rows.lanes[n], grad_score);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        grad_score[i] = is_seen(i) ? weight[i] * (grad_score[i] - (i % 2 == 0 ? dots.x : dots.y)) : 0.0f;
      }
      k_sum.template Add<kIsPartial>(WeightFragment(grad_score), q_columns.lanes[n], sees);
    }
    k_sum.Flush();
    v_sum.Flush();
  }
};

template <int S>
__global__ void __launch_bounds__(kSplitThreads, 2) NarrowGradKeyKernel(const AttentionParameters p) {
  __shared__ __align__(16) GradKeyTile<S> tile;
  const Place place = FindPlace(p, blockIdx.x);
  const int length = place.num_queries;
  if (place.first_row >= length) return;
  const int kv_head = blockIdx.y;

  float2 q_rows[S];
  float2 grad_rows[S];
  float2 q_columns[S];
  float2 grad_columns[S];
  float lse = 0.0f;
  float dot = 0.0f;
  const auto fetch = [&](int head, int begin) {
    const int from = place.q_begin + begin;
    FetchRows<S>(p.q, from, length - begin, head, p.width, q_rows);
    FetchRows<S>(p.grad_out, from, length - begin, head, p.width, grad_rows);
    FetchColumns<S>(p.q, from, length - begin, head, p.width, q_columns);
    FetchColumns<S>(p.grad_out, from, length - begin, head, p.width, grad_columns);
    // Queries beyond the sequence have weight 0.
    const bool is_query = threadIdx.x < kSplitRows && begin + static_cast<int>(threadIdx.x) < length;
    lse = is_query ? p.read_log_sum_exp[(from + static_cast<int>(threadIdx.x)) * p.num_heads + head] : INFINITY;
    dot = is_query ? p.grad_dot[(from + static_cast<int>(threadIdx.x)) * p.num_heads + head] : 0.0f;
  };
  // The first query that sees a key of this block is the one of its first row, which begins a tile.
  static_assert(kNarrowRows % kSplitRows == 0);
  if (kFetchesAhead<S>) fetch(kv_head * p.group, place.first_row);
  RowFragments<S> k;
  RowFragments<S> v;
  {
    float2 pairs[2][S];
    LoadRows<S>(p.k, place.q_begin, place, length, kv_head, p.width, pairs);
    k.Set(pairs);
    LoadRows<S>(p.v, place.q_begin, place, length, kv_head, p.width, pairs);
    v.Set(pairs);
  }
  TiledSum<S> grad_k;
  TiledSum<S> grad_v;
  const bool has_rows = place.warp_row < length;
  const int end_head = (kv_head + 1) * p.group;
  for (int head = kv_head * p.group; head < end_head; ++head) {
    for (int begin = place.first_row; begin < length; begin += kSplitRows) {
      __syncthreads();
      if (!kFetchesAhead<S>) fetch(head, begin);
      Scale<S>(p.scale * kLog2E, q_rows);
      tile.q_rows.Store(q_rows);
      tile.grad_rows.Store(grad_rows);
      tile.q_columns.Store(q_columns);
      tile.grad_columns.Store(grad_columns);
      if (threadIdx.x < kSplitRows) {
        tile.lse_log2[threadIdx.x] = lse * kLog2E;
        tile.dot[threadIdx.x] = dot;
      }
      __syncthreads();
      if (kFetchesAhead<S>) {
        if (begin + kSplitRows < length) {
          fetch(head, begin + kSplitRows);
        } else if (head + 1 < end_head) {
          fetch(head + 1, place.first_row);
        }
      }
      if (!has_rows || place.warp_row >= begin + kSplitRows) continue;
      const int first = place.warp_row + place.row - begin;
      if (place.warp_row + kWarpRows - 1 <= begin) {
        tile.template AddTo<false>(k, v, place, first, 0, grad_k, grad_v);
      } else {
        tile.template AddTo<true>(k, v, place, first, max(place.warp_row - begin, 0) / 8, grad_k, grad_v);
      }
    }
  }
  if (!has_rows) return;
  StoreRows<S>(p.grad_k, place.q_begin, place, length, kv_head, p.width, [&](int h, int s) {
    const float2 x = grad_k.Pair(h, s);
    return make_float2(x.x * p.scale, x.y * p.scale);
  });
  StoreRows<S>(p.grad_v, place.q_begin, place, length, kv_head, p.width,
               [&](int h, int s) { return grad_v.Pair(h, s); });
}

template <int S>
absl::Status LaunchBackward(Stream& stream, const AttentionBackwardOperands& x, const AttentionParameters& p) {
  QST_RETURN_IF_ERROR(
      Launch(stream, NarrowShape(x.q.rows, x.offsets.num, x.shape.num_heads), NarrowGradQueryKernel<S>, p));
  return Launch(stream, NarrowShape(x.q.rows, x.offsets.num, x.shape.num_kv_heads), NarrowGradKeyKernel<S>, p);
}

}  // namespace

absl::Status NarrowAttentionBackward(Stream& stream, const AttentionBackwardOperands& x) {
  AttentionParameters p = BackwardParameters(x);
  QST_ASSIGN_OR_RETURN(void* const scratch, stream.Scratch(x.q.rows * x.shape.num_heads * 4));
  p.grad_dot = static_cast<float*>(scratch);
  return p.width <= 8 ? LaunchBackward<1>(stream, x, p) : LaunchBackward<2>(stream, x, p);
}

}  // namespace cuda
}  // namespace qst
