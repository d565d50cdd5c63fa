// Attention of any width up to 256 in float32 from end to end: a warp a row, whose lanes share the channels of a head.
// Not fast; it serves what the other kernels do not: float32 backbones, and side networks with wide heads.
//
// A row takes its keys one after the other, in ascending order, so its bits depend on its own sequence alone.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_parameters.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

constexpr int kRows = 4;  // of a block: one a warp
constexpr int kThreads = kRows * kWarpSize;
constexpr int kBlocks = 4;  // on a multiprocessor at a time, at least: no registers are spilled

// A row's vector of a head; lane l has channels l, l + 32, ... Channels from `width` on are zero.
template <int E>
struct LaneVector {
  float x[E];

  __device__ __forceinline__ void Load(const AnyMatrix& m, std::int64_t row, int head, int width) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const int c = lane + e * kWarpSize;
      x[e] = c < width ? m.Load(row, head * width + c) : 0.0f;
    }
  }
  __device__ __forceinline__ void Store(const AnyMatrix& m, std::int64_t row, int head, int width, float factor) const {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const int c = lane + e * kWarpSize;
      if (c < width) m.Store(row, head * width + c, x[e] * factor);
    }
  }
  __device__ __forceinline__ void Add(float factor, const LaneVector& y) {
#pragma unroll
    for (int e = 0; e < E; ++e) x[e] = fmaf(factor, y.x[e], x[e]);
  }
  __device__ __forceinline__ void Scale(float factor) {
#pragma unroll
    for (int e = 0; e < E; ++e) x[e] *= factor;
  }
};

// Every lane gets it.
template <int E>
__device__ __forceinline__ float Dot(const LaneVector<E>& a, const LaneVector<E>& b) {
  float sum = 0.0f;
#pragma unroll
  for (int e = 0; e < E; ++e) sum = fmaf(a.x[e], b.x[e], sum);
  return WarpSum(sum);
}

// The row of a warp and where its sequence lies.
struct RowPlace {
  bool is_row;
  int row;  // of the sequence
  std::int64_t q_begin, k_begin;
  int num_queries, num_keys;
};

__device__ __forceinline__ RowPlace FindRow(const AttentionParameters& p) {
  const Tile tile = FindTile(p.q_offsets, p.num_sequences, 1, kRows, blockIdx.x);
  RowPlace place;
  place.row = static_cast<int>(tile.first_row) + threadIdx.x / kWarpSize;
  place.q_begin = p.q_offsets[tile.sequence];
  place.k_begin = p.k_offsets[tile.sequence];
  place.num_queries = p.q_offsets[tile.sequence + 1] - static_cast<int>(place.q_begin);
  place.num_keys = p.k_offsets[tile.sequence + 1] - static_cast<int>(place.k_begin);
  place.is_row = place.row < place.num_queries;
  return place;
}

template <int E>
__global__ void __launch_bounds__(kThreads, kBlocks) GenericForwardKernel(AttentionParameters p) {
  const RowPlace place = FindRow(p);
  if (!place.is_row) return;  // The whole warp.
  const int head = blockIdx.y;
  const int kv_head = head / p.group;
  const std::int64_t token = place.q_begin + place.row;
  LaneVector<E> q, acc = {};
  q.Load(p.q, token, head, p.width);
  const float scale_log2 = p.scale * kLog2E;
  const int seen = place.num_keys - place.num_queries + place.row + 1;
  float row_max = -INFINITY;
  float row_sum = 0.0f;
  for (int j = p.window == 0 ? 0 : max(0, seen - p.window); j < seen; ++j) {
    LaneVector<E> k, v;
    k.Load(p.k, place.k_begin + j, kv_head, p.width);
    v.Load(p.v, place.k_begin + j, kv_head, p.width);
    const float score = Dot(q, k) * scale_log2;
    if (score > row_max) {
      const float correction = Exp2(row_max - score);
      row_sum *= correction;
      acc.Scale(correction);
      row_max = score;
    }
    const float weight = Exp2(score - row_max);
    row_sum += weight;
    acc.Add(weight, v);
  }
  acc.Store(p.out, token, head, p.width, 1.0f / row_sum);
  if (p.log_sum_exp != nullptr && threadIdx.x % kWarpSize == 0) {
    p.log_sum_exp[token * p.num_heads + head] = fmaf(row_max, kLn2, logf(row_sum));
  }
}

// The formulas of backward are those of attention_narrow_backward.cu.
template <int E>
__global__ void __launch_bounds__(kThreads, kBlocks) GenericGradQueryKernel(AttentionParameters p) {
  const RowPlace place = FindRow(p);
  if (!place.is_row) return;
  const int head = blockIdx.y;
  const int kv_head = head / p.group;
  const std::int64_t token = place.q_begin + place.row;
  LaneVector<E> q, grad, out, acc = {};
  q.Load(p.q, token, head, p.width);
  grad.Load(p.grad_out, token, head, p.width);
  out.Load(p.out, token, head, p.width);
  const float dot = Dot(grad, out);
  const float lse_log2 = p.read_log_sum_exp[token * p.num_heads + head] * kLog2E;
  const float scale_log2 = p.scale * kLog2E;
  for (int j = 0; j <= place.row; ++j) {
    LaneVector<E> k, v;
    k.Load(p.k, place.q_begin + j, kv_head, p.width);
    v.Load(p.v, place.q_begin + j, kv_head, p.width);
    const float weight = Exp2(fmaf(Dot(q, k), scale_log2, -lse_log2));
    acc.Add(weight * (Dot(grad, v) - dot), k);
  }
  acc.Store(p.grad_q, token, head, p.width, p.scale);
}

template <int E>
__global__ void __launch_bounds__(kThreads, kBlocks) GenericGradKeyKernel(AttentionParameters p) {
  const RowPlace place = FindRow(p);
  if (!place.is_row) return;
  const int kv_head = blockIdx.y;
  const std::int64_t token = place.q_begin + place.row;
  LaneVector<E> k, v, grad_k = {}, grad_v = {};
  k.Load(p.k, token, kv_head, p.width);
  v.Load(p.v, token, kv_head, p.width);
  const float scale_log2 = p.scale * kLog2E;
  for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head) {
    for (int i = place.row; i < place.num_queries; ++i) {
      const std::int64_t query = place.q_begin + i;
      LaneVector<E> q, grad, out;
      q.Load(p.q, query, head, p.width);
      grad.Load(p.grad_out, query, head, p.width);
      out.Load(p.out, query, head, p.width);
      const float lse_log2 = p.read_log_sum_exp[query * p.num_heads + head] * kLog2E;
      const float weight = Exp2(fmaf(Dot(q, k), scale_log2, -lse_log2));
      grad_v.Add(weight, grad);
      grad_k.Add(weight * (Dot(grad, v) - Dot(grad, out)), q);
    }
  }
  grad_k.Store(p.grad_k, token, kv_head, p.width, p.scale);
  grad_v.Store(p.grad_v, token, kv_head, p.width, 1.0f);
}

LaunchShape ShapeFor(std::int64_t num_tokens, std::int64_t num_sequences, std::int64_t heads) {
  return TileShape(num_tokens, num_sequences, heads, kRows, kThreads);
}

template <int E>
absl::Status LaunchBackward(Stream& stream, const AttentionBackwardOperands& x, const AttentionParameters& p) {
  QST_RETURN_IF_ERROR(
      Launch(stream, ShapeFor(x.q.rows, x.offsets.num, x.shape.num_heads), GenericGradQueryKernel<E>, p));
  return Launch(stream, ShapeFor(x.q.rows, x.offsets.num, x.shape.num_kv_heads), GenericGradKeyKernel<E>, p);
}

}  // namespace

absl::Status GenericAttention(Stream& stream, const AttentionOperands& x) {
  const AttentionParameters p = ForwardParameters(x);
  const LaunchShape shape = ShapeFor(x.q.rows, x.q_offsets.num, x.shape.num_heads);
  if (p.width <= 32) return Launch(stream, shape, GenericForwardKernel<1>, p);
  if (p.width <= 64) return Launch(stream, shape, GenericForwardKernel<2>, p);
  if (p.width <= 128) return Launch(stream, shape, GenericForwardKernel<4>, p);
  return Launch(stream, shape, GenericForwardKernel<8>, p);
}

absl::Status GenericAttentionBackward(Stream& stream, const AttentionBackwardOperands& x) {
  const AttentionParameters p = BackwardParameters(x);
  if (p.width <= 32) return LaunchBackward<1>(stream, x, p);
  if (p.width <= 64) return LaunchBackward<2>(stream, x, p);
  if (p.width <= 128) return LaunchBackward<4>(stream, x, p);
  return LaunchBackward<8>(stream, x, p);
}

}  // namespace cuda
}  // namespace qst
