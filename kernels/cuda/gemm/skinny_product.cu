#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "kernels/cuda/gemm/skinny.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"

namespace qst {
namespace cuda {
namespace {

// Warp s of a block adds up the products of columns [64 i, 64 i + 64) of x with i % kSkinnyWarps == s, ascending; then
// the warps' sums are added ascending. How many rows a block takes changes no row's bits.
constexpr int kUnitCols = 64;
// A warp multiplies this many columns at a time: eight a lane.
constexpr int kStepCols = 32;

struct SkinnyOperands {
  const void* x = nullptr;
  std::int64_t x_ld = 0;
  bool x_is_aligned = false;
  const float* w = nullptr;
  std::int64_t w_ld = 0;
  bool w_is_aligned = false;
  const float* bias = nullptr;
  float* y = nullptr;
  std::int64_t y_ld = 0;
  bool accumulate = false;
  std::int64_t tokens = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
};

// Column of x at which a warp's i-th step begins.
__device__ __forceinline__ std::int64_t ColumnOfStep(int warp, int i) {
  constexpr int kStepsAUnit = kUnitCols / kStepCols;
  return static_cast<std::int64_t>(i / kStepsAUnit * kSkinnyWarps + warp) * kUnitCols + i % kStepsAUnit * kStepCols;
}

// What a lane, 4 g + t, holds of a step. Of columns 8 t to 8 t + 7 the instruction i takes 8 t + 2 i as the t-th and
// 8 t + 2 i + 1 as the (t + 4)-th of its eight.
template <int kRowTiles, int kColTiles>
struct Step {
  uint4 x[kRowTiles][2];  // rows 16 tile + g and 16 tile + g + 8
  float w[kColTiles][8];  // row 8 tile + g of W
};

template <typename T, int kRowTiles, int kColTiles>
__device__ __forceinline__ void LoadStep(const SkinnyOperands& op, std::int64_t first_row, std::int64_t first_output,
                                         std::int64_t step_col, Step<kRowTiles, kColTiles>& step) {
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t col = step_col + 8 * (lane % 4);
  const T* const x = static_cast<const T*>(op.x);
  // The same for all lanes, so that loads that are whole are not each behind a branch.
  const bool is_whole = op.x_is_aligned && op.w_is_aligned && step_col + kStepCols <= op.k;
  // Rows and outputs that are not there are those of others: no one stores what becomes of them.
  const T* x_rows[kRowTiles][2];
  const float* w_rows[kColTiles];
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = min(op.tokens - 1, first_row + 16 * tile + 8 * half + lane / 4);
      x_rows[tile][half] = x + row * op.x_ld + col;
    }
  }
#pragma unroll
  for (int tile = 0; tile < kColTiles; ++tile) {
    const std::int64_t row = min(op.n - 1, first_output + 8 * tile + lane / 4);
    w_rows[tile] = op.w + row * op.w_ld + col;
  }
  if (is_whole) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      step.x[tile][0] = LoadPairs(x_rows[tile][0]);
      step.x[tile][1] = LoadPairs(x_rows[tile][1]);
    }
#pragma unroll
    for (int tile = 0; tile < kColTiles; ++tile) Load8(w_rows[tile], step.w[tile]);
    return;
  }
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
    step.x[tile][0] = LoadPairsUpTo(x_rows[tile][0], op.k - col);
    step.x[tile][1] = LoadPairsUpTo(x_rows[tile][1], op.k - col);
  }
#pragma unroll
  for (int tile = 0; tile < kColTiles; ++tile) LoadUpTo8(w_rows[tile], op.k - col, false, step.w[tile]);
}

template <typename T, int kRowTiles, int kColTiles>
__device__ __forceinline__ void MultiplyStep(const Step<kRowTiles, kColTiles>& step,
                                             float (&sums)[kRowTiles][kColTiles][4]) {
  // Tensor cores cut off where float32 rounds: their sums are kept short.
  float short_sums[kRowTiles][kColTiles][4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    std::uint32_t x[kRowTiles][4];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      UnpackTf32<T>(PairOf(step.x[tile][0], i), x[tile][0], x[tile][2]);
      UnpackTf32<T>(PairOf(step.x[tile][1], i), x[tile][1], x[tile][3]);
    }
#pragma unroll
    for (int col_tile = 0; col_tile < kColTiles; ++col_tile) {
      std::uint32_t high[2], low[2];
      SplitTf32(step.w[col_tile][2 * i], high[0], low[0]);
      SplitTf32(step.w[col_tile][2 * i + 1], high[1], low[1]);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) MmaTf32(short_sums[tile][col_tile], x[tile], low[0], low[1]);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) MmaTf32(short_sums[tile][col_tile], x[tile], high[0], high[1]);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
    for (int col_tile = 0; col_tile < kColTiles; ++col_tile) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[tile][col_tile][c] += short_sums[tile][col_tile][c];
    }
  }
}

// Floats between rows of the warps' sums in shared memory: no bank conflict where lanes store pairs.
template <int kColTiles>
constexpr int kSumsLd = 8 * kColTiles + 8;
template <int kRowTiles, int kColTiles>
constexpr std::int64_t kSumsBytes = std::int64_t{4} * kSkinnyWarps * 16 * kRowTiles* kSumsLd<kColTiles>;

// A block makes 16 kRowTiles rows times 8 kColTiles columns of y; those of the same rows follow each other in the grid,
// so that they find x in L2. kDepth steps are on their way at a time.
template <typename T, int kRowTiles, int kColTiles, int kDepth>
__global__ void __launch_bounds__(kSkinnyThreads)
    SkinnyProductKernel(const __grid_constant__ SkinnyOperands op, unsigned output_blocks) {
  QST_DYNAMIC_SHARED(shared);
  constexpr int kRows = 16 * kRowTiles;
  constexpr int kOutputs = 8 * kColTiles;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x / output_blocks) * kRows;
  const std::int64_t first_output = static_cast<std::int64_t>(blockIdx.x % output_blocks) * kOutputs;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;

  float sums[kRowTiles][kColTiles][4] = {};
  Step<kRowTiles, kColTiles> steps[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    const std::int64_t col = ColumnOfStep(warp, d);
    if (col < op.k) LoadStep<T>(op, first_row, first_output, col, steps[d]);
  }
  // A warp's columns ascend, so the first step beyond the row is its last.
  for (int i = 0; ColumnOfStep(warp, i) < op.k; i += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (ColumnOfStep(warp, i + d) < op.k) MultiplyStep<T>(steps[d], sums);
      const std::int64_t col = ColumnOfStep(warp, i + d + kDepth);
      if (col < op.k) LoadStep<T>(op, first_row, first_output, col, steps[d]);
    }
  }

  float* const all_sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
    for (int col_tile = 0; col_tile < kColTiles; ++col_tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * tile + 8 * half + lane / 4;
        float2* const to = reinterpret_cast<float2*>(all_sums + (warp * kRows + row) * kSumsLd<kColTiles> +
                                                     8 * col_tile + 2 * (lane % 4));
        *to = make_float2(sums[tile][col_tile][2 * half], sums[tile][col_tile][2 * half + 1]);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kOutputs; i += kSkinnyThreads) {
    const int row = i / kOutputs;
    const int output = i % kOutputs;
    if (first_row + row >= op.tokens || first_output + output >= op.n) continue;
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kSkinnyWarps; ++s) sum += all_sums[(s * kRows + row) * kSumsLd<kColTiles> + output];
    if (op.bias != nullptr) sum += op.bias[first_output + output];
    float* const y = op.y + (first_row + row) * op.y_ld + first_output + output;
    *y = op.accumulate ? sum + *y : sum;
  }
}

template <typename T, int kRowTiles, int kColTiles, int kDepth>
absl::Status LaunchProduct(Stream& stream, const SkinnyOperands& op) {
  const std::int64_t output_blocks = CeilDiv(op.n, 8 * kColTiles);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(op.tokens, 16 * kRowTiles) * output_blocks));
  shape.block = dim3(kSkinnyThreads);
  shape.dynamic_shared_bytes = kSumsBytes<kRowTiles, kColTiles>;
  return Launch(stream, shape, SkinnyProductKernel<T, kRowTiles, kColTiles, kDepth>, op,
                static_cast<unsigned>(output_blocks));
}

// As many rows a block as leave a block for every multiprocessor: W is read once a block, from L2.
template <typename T>
absl::Status LaunchForTokens(Stream& stream, const SkinnyOperands& op) {
  const auto fills_device = [&](std::int64_t rows) {
    return 8 * CeilDiv(op.tokens, rows) >= 7 * static_cast<std::int64_t>(stream.num_multiprocessors);
  };
  if (op.n <= kSkinnyFewOutputs) {
    if (fills_device(64)) return LaunchProduct<T, 4, kSkinnyFewOutputs / 8, 2>(stream, op);
    if (fills_device(32)) return LaunchProduct<T, 2, kSkinnyFewOutputs / 8, 3>(stream, op);
    return LaunchProduct<T, 1, kSkinnyFewOutputs / 8, 4>(stream, op);
  }
  if (fills_device(32)) return LaunchProduct<T, 2, kSkinnyManyOutputs / 8, 2>(stream, op);
  return LaunchProduct<T, 1, kSkinnyManyOutputs / 8, 2>(stream, op);
}

}  // namespace

absl::Status SkinnyProduct(Stream& stream, const ConstMatrixView& x, const ConstMatrixView& w,
                           const ConstMatrixView& bias, const MatrixView& y, bool accumulate) {
  SkinnyOperands op;
  op.x = x.data;
  op.x_ld = x.ld;
  op.x_is_aligned = RowsAreAligned(x);
  op.w = w.row<float>(0);
  op.w_ld = w.ld;
  op.w_is_aligned = RowsAreAligned(w);
  op.bias = bias.empty() ? nullptr : bias.row<float>(0);
  op.y = y.row<float>(0);
  op.y_ld = y.ld;
  op.accumulate = accumulate;
  op.tokens = x.rows;
  op.n = w.rows;
  op.k = x.cols;
  return x.dtype == DType::kBF16 ? LaunchForTokens<BF16>(stream, op) : LaunchForTokens<F16>(stream, op);
}

}  // namespace cuda
}  // namespace qst
