// What the float32 attention kernels are launched with: those of narrow heads and the generic ones.
#ifndef QST_KERNELS_CUDA_ATTENTION_PARAMETERS_CUH_
#define QST_KERNELS_CUDA_ATTENTION_PARAMETERS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/stream.cuh"

namespace qst {
namespace cuda {

struct AttentionParameters {
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
  float* grad_dot;  // [T, num_heads], dot(grad_out, out); narrow heads only
};

// `x` is AttentionOperands or AttentionBackwardOperands.
template <typename Operands>
AttentionParameters CommonParameters(const Operands& x, const SequenceOffsets& q_offsets,
                                     const SequenceOffsets& k_offsets) {
  AttentionParameters p = {};
  p.q = MakeAnyMatrix(x.q, x.shape.head_dim);
  p.k = MakeAnyMatrix(x.k, x.shape.head_dim);
  p.v = MakeAnyMatrix(x.v, x.shape.head_dim);
  p.out = MakeAnyMatrix(x.out, x.shape.head_dim);
  p.q_offsets = q_offsets.offsets;
  p.k_offsets = k_offsets.offsets;
  p.num_sequences = static_cast<int>(q_offsets.num);
  p.num_heads = static_cast<int>(x.shape.num_heads);
  p.group = static_cast<int>(x.shape.num_heads / x.shape.num_kv_heads);
  p.width = static_cast<int>(x.shape.head_dim);
  p.scale = x.shape.scale;
  p.window = WindowOf(x.shape);
  return p;
}

inline AttentionParameters ForwardParameters(const AttentionOperands& x) {
  AttentionParameters p = CommonParameters(x, x.q_offsets, x.k_offsets);
  p.log_sum_exp = x.log_sum_exp;
  return p;
}

inline AttentionParameters BackwardParameters(const AttentionBackwardOperands& x) {
  AttentionParameters p = CommonParameters(x, x.offsets, x.offsets);
  p.grad_out = MakeAnyMatrix(x.grad_out, x.shape.head_dim);
  p.grad_q = MakeAnyMatrix(x.grad_q, x.shape.head_dim);
  p.grad_k = MakeAnyMatrix(x.grad_k, x.shape.head_dim);
  p.grad_v = MakeAnyMatrix(x.grad_v, x.shape.head_dim);
  p.read_log_sum_exp = x.log_sum_exp;
  return p;
}

// A block for each tile of tile_rows tokens and each head.
inline LaunchShape TileShape(std::int64_t num_tokens, std::int64_t num_sequences, std::int64_t heads, int tile_rows,
                             int threads) {
  LaunchShape shape;
  shape.grid =
      dim3(static_cast<unsigned>(NumTileSlots(num_tokens, 1, tile_rows, num_sequences)), static_cast<unsigned>(heads));
  shape.block = dim3(threads);
  return shape;
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ATTENTION_PARAMETERS_CUH_
