// What the attention kernels share: which rows a block works on, and operands of any element type.
#ifndef QST_KERNELS_CUDA_ATTENTION_TILES_CUH_
#define QST_KERNELS_CUDA_ATTENTION_TILES_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// 2^x, to two units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float Exp2(float x) {
#ifdef QST_CUDA_SHIM
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// ---- Work list ------------------------------------------------------------------------------------

// Every sequence is cut into tiles of tile_rows rows, counted from its own first row; a token has rows_per_token rows.
// The host knows the number of tokens but not where sequences begin, so a grid has a slot for every tile that there
// could be: sequence s owns the slots from offsets[s] * rows_per_token / tile_rows + s on, of which the last may be
// spare.
inline std::int64_t NumTileSlots(std::int64_t num_tokens, int rows_per_token, int tile_rows,
                                 std::int64_t num_sequences) {
  return num_tokens * rows_per_token / tile_rows + num_sequences;
}

struct Tile {
  int sequence;
  std::int64_t first_row;  // of the sequence's rows
};

// Which tile a slot is; it may begin behind the sequence's last row. All lanes of a warp call together.
__device__ __forceinline__ Tile FindTile(const std::int32_t* offsets, int num_sequences, int rows_per_token,
                                         int tile_rows, std::int64_t slot) {
  const int lane = threadIdx.x % kWarpSize;
  const auto first_slot = [&](int s) { return static_cast<std::int64_t>(offsets[s]) * rows_per_token / tile_rows + s; };
  // The last sequence of [first, first + count) that begins at or before the slot, found 32 candidates at a time.
  int first = 0;
  int count = num_sequences;
  while (count > 1) {
    const int step = (count + kWarpSize - 1) / kWarpSize;
    const bool is_before = lane * step < count && first_slot(first + lane * step) <= slot;
    const int last = __popc(__ballot_sync(kAllLanes, is_before)) - 1;
    first += last * step;
    count = min(step, count - last * step);
  }
  return Tile{first, (slot - first_slot(first)) * tile_rows};
}

// Windows beyond what rows are counted in are none.
inline int WindowOf(const AttentionShape& shape) {
  constexpr std::int64_t kNone = std::int64_t{1} << 31;
  return shape.window < kNone ? static_cast<int>(shape.window) : 0;
}

// ---- Operands -------------------------------------------------------------------------------------

// A matrix whose element type is known when the kernel runs: loads and stores are a small part of these kernels' work.
struct AnyMatrix {
  void* data;
  std::int64_t ld;
  DType dtype;
  bool is_wide;  // rows of a head begin at multiples of 16 bytes and are that long

  __device__ __forceinline__ float Load(std::int64_t row, std::int64_t column) const {
    const std::int64_t i = row * ld + column;
    switch (dtype) {
      case DType::kF16:
        return ToFloat(static_cast<const F16*>(data)[i]);
      case DType::kBF16:
        return ToFloat(static_cast<const BF16*>(data)[i]);
      default:
        return static_cast<const float*>(data)[i];
    }
  }

  __device__ __forceinline__ void Store(std::int64_t row, std::int64_t column, float value) const {
    const std::int64_t i = row * ld + column;
    switch (dtype) {
      case DType::kF16:
        static_cast<F16*>(data)[i] = FromFloat<F16>(value);
        break;
      case DType::kBF16:
        static_cast<BF16*>(data)[i] = FromFloat<BF16>(value);
        break;
      default:
        static_cast<float*>(data)[i] = value;
    }
  }
};

// `width` is a head's.
inline AnyMatrix MakeAnyMatrix(const ConstMatrixView& m, std::int64_t width) {
  constexpr std::int64_t kWideBytes = 16;
  const std::int64_t elem_bytes = DTypeBytes(m.dtype);
  const bool is_wide = reinterpret_cast<std::uintptr_t>(m.data) % kWideBytes == 0 &&
                       m.ld * elem_bytes % kWideBytes == 0 && width * elem_bytes % kWideBytes == 0;
  return AnyMatrix{const_cast<void*>(m.data), m.ld, m.dtype, is_wide};
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ATTENTION_TILES_CUH_
