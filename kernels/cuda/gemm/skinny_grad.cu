#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/gemm/panels.cuh"
#include "kernels/cuda/gemm/rows.cuh"
#include "kernels/cuda/gemm/skinny.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

// A block makes kBlockCols columns of one chunk's gradient. Each warp adds up its tokens of the chunk ascending, eight
// at a time; then the warps are added ascending.
constexpr int kBlockCols = 64;
constexpr int kStepTokens = 8;
constexpr int kWarpTokens = kGradChunkRows / kSkinnyWarps;
static_assert(kWarpTokens % kStepTokens == 0);
// Columns as lanes hold them: eight each, of which the instruction i takes 2 i and 2 i + 1.
constexpr int kColTiles = 4;

struct GradOperands {
  const float* grad_y = nullptr;
  std::int64_t grad_y_ld = 0;
  const void* x = nullptr;
  std::int64_t x_ld = 0;
  bool x_is_aligned = false;
  float* out = nullptr;  // of the first chunk
  std::int64_t out_ld = 0;
  std::int64_t out_stride = 0;  // elements between chunks
  bool accumulate = false;
  std::int64_t tokens = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
};

// What a lane, 4 g + t, holds of tokens t and t + 4 of a step; zero where there is no token.
template <int kOutputTiles>
struct Step {
  uint4 x[2];                     // columns 8 g to 8 g + 7
  float grad_y[kOutputTiles][2];  // column 8 tile + g
};

template <typename T, int kOutputTiles>
__device__ __forceinline__ void LoadStep(const GradOperands& op, std::int64_t first_token, std::int64_t first_col,
                                         std::int64_t first_output, Step<kOutputTiles>& step) {
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t col = first_col + 8 * (lane / 4);
  const std::int64_t token = first_token + lane % 4;
  const T* const x = static_cast<const T*>(op.x) + token * op.x_ld + col;
  const float* const grad_y = op.grad_y + token * op.grad_y_ld;
  // Outputs that are not there are those of others: no one stores what becomes of them.
  std::int64_t outputs[kOutputTiles];
#pragma unroll
  for (int tile = 0; tile < kOutputTiles; ++tile) outputs[tile] = min(op.n - 1, first_output + 8 * tile + lane / 4);
  // The same for all lanes, so that loads that are whole are not each behind a branch.
  if (op.x_is_aligned && first_col + kBlockCols <= op.k && first_token + kStepTokens <= op.tokens) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      step.x[half] = LoadPairs(x + 4 * half * op.x_ld);
#pragma unroll
      for (int tile = 0; tile < kOutputTiles; ++tile) {
        step.grad_y[tile][half] = __ldg(grad_y + 4 * half * op.grad_y_ld + outputs[tile]);
      }
    }
    return;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool is_token = token + 4 * half < op.tokens;
    step.x[half] = LoadPairsUpTo(x + 4 * half * op.x_ld, is_token ? op.k - col : 0);
#pragma unroll
    for (int tile = 0; tile < kOutputTiles; ++tile) {
      step.grad_y[tile][half] = is_token ? __ldg(grad_y + 4 * half * op.grad_y_ld + outputs[tile]) : 0.0f;
    }
  }
}

template <typename T, int kOutputTiles>
__device__ __forceinline__ void MultiplyStep(const Step<kOutputTiles>& step,
                                             float (&sums)[kColTiles][kOutputTiles][4]) {
  std::uint32_t high[kOutputTiles][2], low[kOutputTiles][2];
#pragma unroll
  for (int tile = 0; tile < kOutputTiles; ++tile) {
    SplitTf32(step.grad_y[tile][0], high[tile][0], low[tile][0]);
    SplitTf32(step.grad_y[tile][1], high[tile][1], low[tile][1]);
  }
#pragma unroll
  for (int i = 0; i < kColTiles; ++i) {
    std::uint32_t x[4];
    UnpackTf32<T>(PairOf(step.x[0], i), x[0], x[1]);
    UnpackTf32<T>(PairOf(step.x[1], i), x[2], x[3]);
#pragma unroll
    for (int tile = 0; tile < kOutputTiles; ++tile) MmaTf32(sums[i][tile], x, low[tile][0], low[tile][1]);
#pragma unroll
    for (int tile = 0; tile < kOutputTiles; ++tile) MmaTf32(sums[i][tile], x, high[tile][0], high[tile][1]);
  }
}

// Where the warps' sums lie in shared memory: [kSkinnyWarps, outputs, kSumsLd], columns permuted so that lanes that
// store at once meet no bank conflict.
constexpr int kSumsLd = kBlockCols + 4;
__device__ __forceinline__ int PlaceOfColumn(int col) { return col % 8 * 8 + col / 8; }

template <typename T, int kOutputTiles, int kDepth>
__global__ void __launch_bounds__(kSkinnyThreads)
    SkinnyGradKernel(const __grid_constant__ GradOperands op, unsigned output_blocks, unsigned col_blocks) {
  QST_DYNAMIC_SHARED(shared);
  constexpr int kOutputs = 8 * kOutputTiles;
  constexpr int kSteps = kWarpTokens / kStepTokens;
  static_assert(kSteps % kDepth == 0);
  const std::int64_t first_output = static_cast<std::int64_t>(blockIdx.x % output_blocks) * kOutputs;
  const std::int64_t first_col = static_cast<std::int64_t>(blockIdx.x / output_blocks % col_blocks) * kBlockCols;
  const std::int64_t chunk = blockIdx.x / output_blocks / col_blocks;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t first_token = chunk * kGradChunkRows + warp * kWarpTokens;

  float sums[kColTiles][kOutputTiles][4] = {};
  Step<kOutputTiles> steps[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    LoadStep<T>(op, first_token + d * kStepTokens, first_col, first_output, steps[d]);
  }
#pragma unroll 1
  for (int i = 0; i < kSteps && first_token + i * kStepTokens < op.tokens; i += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      MultiplyStep<T>(steps[d], sums);
      if (i + kDepth < kSteps) {
        LoadStep<T>(op, first_token + (i + d + kDepth) * kStepTokens, first_col, first_output, steps[d]);
      }
    }
  }

  float* const all_sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < kColTiles; ++i) {
#pragma unroll
    for (int tile = 0; tile < kOutputTiles; ++tile) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int output = 8 * tile + 2 * (lane % 4) + c % 2;
        const int col = 8 * (lane / 4) + 2 * i + c / 2;
        all_sums[(warp * kOutputs + output) * kSumsLd + PlaceOfColumn(col)] = sums[i][tile][c];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kOutputs * kBlockCols; i += kSkinnyThreads) {
    const int output = i / kBlockCols;
    const int col = i % kBlockCols;
    if (first_output + output >= op.n || first_col + col >= op.k) continue;
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kSkinnyWarps; ++s) sum += all_sums[(s * kOutputs + output) * kSumsLd + PlaceOfColumn(col)];
    float* const out = op.out + chunk * op.out_stride + (first_output + output) * op.out_ld + first_col + col;
    *out = op.accumulate ? *out + sum : sum;
  }
}

template <typename T, int kOutputTiles, int kDepth>
absl::Status LaunchGrad(Stream& stream, const GradOperands& op) {
  const std::int64_t output_blocks = CeilDiv(op.n, 8 * kOutputTiles);
  const std::int64_t col_blocks = CeilDiv(op.k, kBlockCols);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(output_blocks * col_blocks * CeilDiv(op.tokens, kGradChunkRows)));
  shape.block = dim3(kSkinnyThreads);
  shape.dynamic_shared_bytes = std::int64_t{4} * kSkinnyWarps * 8 * kOutputTiles * kSumsLd;
  return Launch(stream, shape, SkinnyGradKernel<T, kOutputTiles, kDepth>, op, static_cast<unsigned>(output_blocks),
                static_cast<unsigned>(col_blocks));
}

template <typename T>
absl::Status LaunchForOutputs(Stream& stream, const GradOperands& op) {
  if (op.n <= kSkinnyFewOutputs) return LaunchGrad<T, kSkinnyFewOutputs / 8, 4>(stream, op);
  return LaunchGrad<T, kSkinnyManyOutputs / 8, 2>(stream, op);
}

}  // namespace

absl::Status SkinnyGrad(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                        const MatrixView& grad_w, bool accumulate) {
  const std::int64_t n = grad_y.cols;
  const std::int64_t k = x.cols;
  const std::int64_t num_chunks = CeilDiv(x.rows, kGradChunkRows);
  GradOperands op;
  op.grad_y_ld = grad_y.ld;
  op.x_ld = x.ld;
  op.x_is_aligned = RowsAreAligned(x);
  op.n = n;
  op.k = k;
  const auto launch = [&](std::int64_t begin, std::int64_t end) {
    op.grad_y = grad_y.row<float>(begin);
    op.x = Rows(x, begin, end).data;
    op.tokens = end - begin;
    return x.dtype == DType::kBF16 ? LaunchForOutputs<BF16>(stream, op) : LaunchForOutputs<F16>(stream, op);
  };
  if (num_chunks == 1) {
    op.out = grad_w.row<float>(0);
    op.out_ld = grad_w.ld;
    op.accumulate = accumulate;
    return launch(0, x.rows);
  }
  QST_ASSIGN_OR_RETURN(LinearState* const state, LinearState::Of(stream));
  const std::int64_t at_a_time = std::min(num_chunks, SkinnyGradChunksAtATime(n, k, state->limits));
  QST_ASSIGN_OR_RETURN(void* const scratch, stream.Scratch(CopyBytes(at_a_time * n, k, DType::kF32)));
  op.out = static_cast<float*>(scratch);
  op.out_ld = PaddedCols(k, DType::kF32);
  op.out_stride = n * op.out_ld;
  for (std::int64_t chunk = 0; chunk < num_chunks; chunk += at_a_time) {
    const std::int64_t chunk_end = std::min(num_chunks, chunk + at_a_time);
    QST_RETURN_IF_ERROR(launch(chunk * kGradChunkRows, std::min(x.rows, chunk_end * kGradChunkRows)));
    QST_RETURN_IF_ERROR(
        AddPartialSums(stream, op.out, op.out_ld, op.out_stride, chunk_end - chunk, grad_w, accumulate || chunk > 0));
  }
  return absl::OkStatus();
}

}  // namespace cuda
}  // namespace qst
