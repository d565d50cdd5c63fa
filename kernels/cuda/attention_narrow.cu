// Attention of narrow heads (side network): a thread a row, whose vectors stay in its registers; tiles of keys and
// values, or of queries, in shared memory, read by all rows of the block at once. Nothing of size T x T is stored:
// backward computes the probabilities again from log_sum_exp.
//
// Rows beyond what a row may see are never multiplied in. Keys are counted in tiles from the start of the sequence, and
// every sum runs in ascending order, so a row's bits depend on its own sequence alone.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

constexpr int kRows = 128;  // of a block: one a thread
// At least so many blocks on a multiprocessor at a time: registers enough for 16 channels, without spilling.
constexpr int kBlocks = 4;
constexpr int kTile = 64;  // rows in shared memory at a time
// Scores that are turned into probabilities together: the running maximum is brought up to date once for all.
constexpr int kChunk = 8;

struct NarrowParameters {
  AnyMatrix q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  const std::int32_t* q_offsets;
  const std::int32_t* k_offsets;
  int num_sequences;
  int num_heads;
  int group;  // query heads a key head
  int width;
  float scale;
  int window;          // keys that a row sees, 0: all before it
  float* log_sum_exp;  // [T, num_heads]
  const float* read_log_sum_exp;
  float* grad_dot;  // [T, num_heads], dot(grad_out, out)
};

// A row's vector of a head, in registers; channels from `width` on are zero.
template <int W>
__device__ __forceinline__ void LoadVector(const AnyMatrix& m, std::int64_t row, int head, int width, float (&out)[W]) {
#pragma unroll
  for (int c = 0; c < W; ++c) out[c] = c < width ? m.Load(row, head * width + c) : 0.0f;
}

template <int W>
__device__ __forceinline__ void StoreVector(const AnyMatrix& m, std::int64_t row, int head, int width,
                                            const float (&values)[W]) {
#pragma unroll
  for (int c = 0; c < W; ++c) {
    if (c < width) m.Store(row, head * width + c, values[c]);
  }
}

template <int W>
__device__ __forceinline__ float Dot(const float (&a)[W], const float* b) {
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < W; ++c) sum = fmaf(a[c], b[c], sum);
  return sum;
}

// Rows [first, first + count) of a head, in float32, into shared memory.
template <int W>
__device__ __forceinline__ void LoadTile(const AnyMatrix& m, std::int64_t first, int count, int head, int width,
                                         float (*tile)[W]) {
  for (int i = threadIdx.x; i < count * W; i += kRows) {
    const int c = i % W;
    tile[i / W][c] = c < width ? m.Load(first + i / W, head * width + c) : 0.0f;
  }
}

// out = softmax(scale q k^T) v over the keys that a row sees, log_sum_exp of its scaled scores.
template <int W>
__global__ void __launch_bounds__(kRows, kBlocks) NarrowForwardKernel(NarrowParameters p) {
  __shared__ __align__(16) float keys[kTile][W];
  __shared__ __align__(16) float values[kTile][W];
  const Tile tile = FindTile(p.q_offsets, p.num_sequences, 1, kRows, blockIdx.x);
  const std::int64_t q_begin = p.q_offsets[tile.sequence];
  const std::int64_t k_begin = p.k_offsets[tile.sequence];
  const int num_queries = p.q_offsets[tile.sequence + 1] - static_cast<int>(q_begin);
  const int num_keys = p.k_offsets[tile.sequence + 1] - static_cast<int>(k_begin);
  const int first_row = static_cast<int>(tile.first_row);
  if (first_row >= num_queries) return;
  const int head = blockIdx.y;
  const int kv_head = head / p.group;
  const int row = first_row + threadIdx.x;
  const bool is_row = row < num_queries;
  // Keys that this row, and the block's last row, see.
  const int past = num_keys - num_queries;
  const int num_seen = is_row ? past + row + 1 : 0;
  const int block_keys = past + min(first_row + kRows, num_queries);
  // The first that they see.
  const int first_seen = p.window == 0 ? 0 : max(0, num_seen - p.window);
  const int first_key = p.window == 0 ? 0 : max(0, past + first_row + 1 - p.window);

  const float scale_log2 = p.scale * kLog2E;
  float q[W] = {};
  float acc[W] = {};
  if (is_row) LoadVector<W>(p.q, q_begin + row, head, p.width, q);
  float row_max = -INFINITY;
  float row_sum = 0.0f;
  for (int begin = first_key / kTile * kTile; begin < block_keys; begin += kTile) {
    const int count = min(kTile, num_keys - begin);
    __syncthreads();
    LoadTile<W>(p.k, k_begin + begin, count, kv_head, p.width, keys);
    LoadTile<W>(p.v, k_begin + begin, count, kv_head, p.width, values);
    __syncthreads();
    const int seen = min(count, num_seen - begin);
    const int hidden = max(0, first_seen - begin);
    for (int j = hidden / kChunk * kChunk; j < seen; j += kChunk) {
      float scores[kChunk];
      float chunk_max = row_max;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        scores[i] = j + i >= hidden && j + i < seen ? Dot<W>(q, keys[j + i]) * scale_log2 : -INFINITY;
        chunk_max = fmaxf(chunk_max, scores[i]);
      }
      // All scores so far may be minus infinity; then nothing is there to rescale.
      const float correction = chunk_max == -INFINITY ? 1.0f : Exp2(row_max - chunk_max);
      row_sum *= correction;
#pragma unroll
      for (int c = 0; c < W; ++c) acc[c] *= correction;
      row_max = chunk_max;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        if (j + i >= hidden && j + i < seen) {
          const float weight = Exp2(scores[i] - row_max);
          row_sum += weight;
#pragma unroll
          for (int c = 0; c < W; ++c) acc[c] = fmaf(weight, values[j + i][c], acc[c]);
        }
      }
    }
  }
  if (!is_row) return;
  const float inverse = 1.0f / row_sum;
#pragma unroll
  for (int c = 0; c < W; ++c) acc[c] *= inverse;
  StoreVector<W>(p.out, q_begin + row, head, p.width, acc);
  if (p.log_sum_exp != nullptr) {
    p.log_sum_exp[(q_begin + row) * p.num_heads + head] = fmaf(row_max, kLn2, logf(row_sum));
  }
}

// With P the probabilities and D = dot(grad_out, out): dS = P (grad_out v^T - D), grad_q = scale dS k.
template <int W>
__global__ void __launch_bounds__(kRows, kBlocks) NarrowGradQueryKernel(NarrowParameters p) {
  __shared__ __align__(16) float keys[kTile][W];
  __shared__ __align__(16) float values[kTile][W];
  const Tile tile = FindTile(p.q_offsets, p.num_sequences, 1, kRows, blockIdx.x);
  const std::int64_t begin_row = p.q_offsets[tile.sequence];
  const int length = p.q_offsets[tile.sequence + 1] - static_cast<int>(begin_row);
  const int first_row = static_cast<int>(tile.first_row);
  if (first_row >= length) return;
  const int head = blockIdx.y;
  const int kv_head = head / p.group;
  const int row = first_row + threadIdx.x;
  const bool is_row = row < length;
  const int block_keys = min(first_row + kRows, length);

  float q[W] = {};
  float grad[W] = {};
  float acc[W] = {};
  float dot = 0.0f;
  float lse_log2 = 0.0f;
  if (is_row) {
    float out[W];
    LoadVector<W>(p.q, begin_row + row, head, p.width, q);
    LoadVector<W>(p.grad_out, begin_row + row, head, p.width, grad);
    LoadVector<W>(p.out, begin_row + row, head, p.width, out);
    dot = Dot<W>(grad, out);
    lse_log2 = p.read_log_sum_exp[(begin_row + row) * p.num_heads + head] * kLog2E;
    p.grad_dot[(begin_row + row) * p.num_heads + head] = dot;
  }
  const float scale_log2 = p.scale * kLog2E;
  for (int begin = 0; begin < block_keys; begin += kTile) {
    const int count = min(kTile, length - begin);
    __syncthreads();
    LoadTile<W>(p.k, begin_row + begin, count, kv_head, p.width, keys);
    LoadTile<W>(p.v, begin_row + begin, count, kv_head, p.width, values);
    __syncthreads();
    const int seen = is_row ? min(count, row + 1 - begin) : 0;
    for (int j = 0; j < seen; ++j) {
      const float weight = Exp2(fmaf(Dot<W>(q, keys[j]), scale_log2, -lse_log2));
      const float grad_score = weight * (Dot<W>(grad, values[j]) - dot);
#pragma unroll
      for (int c = 0; c < W; ++c) acc[c] = fmaf(grad_score, keys[j][c], acc[c]);
    }
  }
  if (!is_row) return;
#pragma unroll
  for (int c = 0; c < W; ++c) acc[c] *= p.scale;
  StoreVector<W>(p.grad_q, begin_row + row, head, p.width, acc);
}

// grad_v = P^T grad_out, grad_k = scale dS^T q, over the queries that see a key, those of the group's heads in order.
template <int W>
__global__ void __launch_bounds__(kRows, kBlocks) NarrowGradKeyKernel(NarrowParameters p) {
  __shared__ __align__(16) float queries[kTile][W];
  __shared__ __align__(16) float grads[kTile][W];
  __shared__ float lse_log2[kTile];
  __shared__ float dots[kTile];
  const Tile tile = FindTile(p.q_offsets, p.num_sequences, 1, kRows, blockIdx.x);
  const std::int64_t begin_row = p.q_offsets[tile.sequence];
  const int length = p.q_offsets[tile.sequence + 1] - static_cast<int>(begin_row);
  const int first_row = static_cast<int>(tile.first_row);
  if (first_row >= length) return;
  const int kv_head = blockIdx.y;
  const int row = first_row + threadIdx.x;
  const bool is_row = row < length;

  float k[W] = {};
  float v[W] = {};
  float grad_k[W] = {};
  float grad_v[W] = {};
  if (is_row) {
    LoadVector<W>(p.k, begin_row + row, kv_head, p.width, k);
    LoadVector<W>(p.v, begin_row + row, kv_head, p.width, v);
  }
  const float scale_log2 = p.scale * kLog2E;
  for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head) {
    // The first query that sees a key of this block is the one of its first row.
    for (int begin = first_row / kTile * kTile; begin < length; begin += kTile) {
      const int count = min(kTile, length - begin);
      __syncthreads();
      LoadTile<W>(p.q, begin_row + begin, count, head, p.width, queries);
      LoadTile<W>(p.grad_out, begin_row + begin, count, head, p.width, grads);
      for (int i = threadIdx.x; i < count; i += kRows) {
        const std::int64_t at = (begin_row + begin + i) * p.num_heads + head;
        lse_log2[i] = p.read_log_sum_exp[at] * kLog2E;
        dots[i] = p.grad_dot[at];
      }
      __syncthreads();
      if (!is_row) continue;
      for (int i = max(0, row - begin); i < count; ++i) {
        const float weight = Exp2(fmaf(Dot<W>(k, queries[i]), scale_log2, -lse_log2[i]));
        const float grad_score = weight * (Dot<W>(v, grads[i]) - dots[i]);
#pragma unroll
        for (int c = 0; c < W; ++c) {
          grad_v[c] = fmaf(weight, grads[i][c], grad_v[c]);
          grad_k[c] = fmaf(grad_score, queries[i][c], grad_k[c]);
        }
      }
    }
  }
  if (!is_row) return;
#pragma unroll
  for (int c = 0; c < W; ++c) grad_k[c] *= p.scale;
  StoreVector<W>(p.grad_k, begin_row + row, kv_head, p.width, grad_k);
  StoreVector<W>(p.grad_v, begin_row + row, kv_head, p.width, grad_v);
}

NarrowParameters CommonParameters(const AttentionShape& shape, const ConstMatrixView& q, const ConstMatrixView& k,
                                  const ConstMatrixView& v, const SequenceOffsets& q_offsets,
                                  const SequenceOffsets& k_offsets) {
  NarrowParameters p = {};
  p.q = MakeAnyMatrix(q, shape.head_dim);
  p.k = MakeAnyMatrix(k, shape.head_dim);
  p.v = MakeAnyMatrix(v, shape.head_dim);
  p.q_offsets = q_offsets.offsets;
  p.k_offsets = k_offsets.offsets;
  p.num_sequences = static_cast<int>(q_offsets.num);
  p.num_heads = static_cast<int>(shape.num_heads);
  p.group = static_cast<int>(shape.num_heads / shape.num_kv_heads);
  p.width = static_cast<int>(shape.head_dim);
  p.scale = shape.scale;
  p.window = WindowOf(shape);
  return p;
}

LaunchShape ShapeFor(std::int64_t num_tokens, std::int64_t num_sequences, std::int64_t heads) {
  LaunchShape shape;
  shape.grid =
      dim3(static_cast<unsigned>(NumTileSlots(num_tokens, 1, kRows, num_sequences)), static_cast<unsigned>(heads));
  shape.block = dim3(kRows);
  return shape;
}

template <int W>
absl::Status LaunchBackward(Stream& stream, const AttentionBackwardOperands& x, const NarrowParameters& p) {
  QST_RETURN_IF_ERROR(
      Launch(stream, ShapeFor(x.q.rows, x.offsets.num, x.shape.num_heads), NarrowGradQueryKernel<W>, p));
  return Launch(stream, ShapeFor(x.q.rows, x.offsets.num, x.shape.num_kv_heads), NarrowGradKeyKernel<W>, p);
}

}  // namespace

absl::Status NarrowAttention(Stream& stream, const AttentionOperands& x) {
  NarrowParameters p = CommonParameters(x.shape, x.q, x.k, x.v, x.q_offsets, x.k_offsets);
  p.out = MakeAnyMatrix(x.out, x.shape.head_dim);
  p.log_sum_exp = x.log_sum_exp;
  const LaunchShape shape = ShapeFor(x.q.rows, x.q_offsets.num, x.shape.num_heads);
  if (p.width <= 4) return Launch(stream, shape, NarrowForwardKernel<4>, p);
  if (p.width <= 8) return Launch(stream, shape, NarrowForwardKernel<8>, p);
  return Launch(stream, shape, NarrowForwardKernel<16>, p);
}

absl::Status NarrowAttentionBackward(Stream& stream, const AttentionBackwardOperands& x) {
  NarrowParameters p = CommonParameters(x.shape, x.q, x.k, x.v, x.offsets, x.offsets);
  p.out = MakeAnyMatrix(x.out, x.shape.head_dim);
  p.grad_out = MakeAnyMatrix(x.grad_out, x.shape.head_dim);
  p.grad_q = MakeAnyMatrix(x.grad_q, x.shape.head_dim);
  p.grad_k = MakeAnyMatrix(x.grad_k, x.shape.head_dim);
  p.grad_v = MakeAnyMatrix(x.grad_v, x.shape.head_dim);
  p.read_log_sum_exp = x.log_sum_exp;
  QST_ASSIGN_OR_RETURN(void* const scratch, stream.Scratch(x.q.rows * x.shape.num_heads * 4));
  p.grad_dot = static_cast<float*>(scratch);
  if (p.width <= 4) return LaunchBackward<4>(stream, x, p);
  if (p.width <= 8) return LaunchBackward<8>(stream, x, p);
  return LaunchBackward<16>(stream, x, p);
}

}  // namespace cuda
}  // namespace qst
