// Sums over the rows of a matrix, as gradients of weights are. Two passes, no atomics: chunks of a fixed number of rows
// to partial sums, then the partial sums. Each sum has one order, which depends on the number of rows alone.
#ifndef QST_KERNELS_CUDA_COLUMN_SUMS_CUH_
#define QST_KERNELS_CUDA_COLUMN_SUMS_CUH_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {

constexpr int kSumChunkRows = 64;
// Rows of a chunk, and later chunks, are dealt out to lanes (threadIdx.y) in turn; then lanes are added ascending.
constexpr int kSumLanes = 8;

// Sums of a column's lanes, in lane 0. `shared` holds kSumLanes rows of kWarpSize.
__device__ __forceinline__ float SumLanes(float x, float (*shared)[kWarpSize]) {
  shared[threadIdx.y][threadIdx.x] = x;
  __syncthreads();
  float sum = 0.0f;
  if (threadIdx.y == 0) {
#pragma unroll
    for (int lane = 0; lane < kSumLanes; ++lane) sum += shared[lane][threadIdx.x];
  }
  __syncthreads();
  return sum;
}

// Term has
//   static constexpr int kSums                                            sums a column
//   __device__ void Add(row, col, float (&sums)[kSums])                   adds what element (row, col) contributes
//   __device__ void Finish(int sum, std::int64_t col, float total)        takes a column's sum
// partials is [kSums, chunks, cols]; with kOneColumn, where all columns are one sum, [kSums, chunks, column blocks].
template <typename Term, bool kOneColumn>
__global__ void __launch_bounds__(kWarpSize* kSumLanes)
    SumChunksKernel(Term term, std::int64_t rows, std::int64_t cols, unsigned col_blocks, float* partials) {
  __shared__ float shared[kSumLanes][kWarpSize];
  const unsigned chunk = blockIdx.x / col_blocks;
  const unsigned col_block = blockIdx.x - chunk * col_blocks;
  const std::int64_t chunks = gridDim.x / col_blocks;
  const std::int64_t col = static_cast<std::int64_t>(col_block) * kWarpSize + threadIdx.x;
  const std::int64_t first = static_cast<std::int64_t>(chunk) * kSumChunkRows + threadIdx.y;
  float sums[Term::kSums] = {};
#pragma unroll
  for (int i = 0; i < kSumChunkRows; i += kSumLanes) {
    if (first + i < rows && col < cols) term.Add(first + i, col, sums);
  }
#pragma unroll
  for (int s = 0; s < Term::kSums; ++s) {
    float sum = SumLanes(sums[s], shared);
    if (threadIdx.y != 0) continue;
    if (kOneColumn) {
      sum = WarpSum(sum);
      if (threadIdx.x == 0) partials[(s * chunks + chunk) * col_blocks + col_block] = sum;
    } else if (col < cols) {
      partials[(s * chunks + chunk) * cols + col] = sum;
    }
  }
}

// A warp of columns a block.
template <typename Term>
__global__ void __launch_bounds__(kWarpSize* kSumLanes)
    SumPartialsKernel(Term term, std::int64_t chunks, std::int64_t cols, const float* partials) {
  __shared__ float shared[kSumLanes][kWarpSize];
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + threadIdx.x;
#pragma unroll
  for (int s = 0; s < Term::kSums; ++s) {
    float sum = 0.0f;
    if (col < cols) {
#pragma unroll 4
      for (std::int64_t c = threadIdx.y; c < chunks; c += kSumLanes) sum += partials[(s * chunks + c) * cols + col];
    }
    sum = SumLanes(sum, shared);
    if (threadIdx.y == 0 && col < cols) term.Finish(s, col, sum);
  }
}

constexpr int kOneSumThreads = 512;

// One block: all partial sums.
template <typename Term>
__global__ void __launch_bounds__(kOneSumThreads)
    SumAllPartialsKernel(Term term, std::int64_t num, const float* partials) {
  __shared__ float shared[kWarpSize];
#pragma unroll
  for (int s = 0; s < Term::kSums; ++s) {
    float sum = 0.0f;
    for (std::int64_t i = threadIdx.x; i < num; i += kOneSumThreads) sum += partials[s * num + i];
    sum = BlockSum(sum, shared);
    if (threadIdx.x == 0) term.Finish(s, 0, sum);
  }
}

// Sums of each column, or with kOneColumn one of all columns, which Finish gets as column 0.
template <bool kOneColumn, typename Term>
absl::Status SumColumns(Stream& stream, const Term& term, std::int64_t rows, std::int64_t cols) {
  const std::int64_t chunks = CeilDiv(rows, kSumChunkRows);
  const std::int64_t col_blocks = CeilDiv(cols, kWarpSize);
  const std::int64_t partials_a_chunk = kOneColumn ? col_blocks : cols;
  QST_ASSIGN_OR_RETURN(void* const scratch, stream.Scratch(Term::kSums * chunks * partials_a_chunk *
                                                           static_cast<std::int64_t>(sizeof(float))));
  float* const partials = static_cast<float*>(scratch);
  LaunchShape shape;
  shape.block = dim3(kWarpSize, kSumLanes);
  shape.grid = dim3(static_cast<unsigned>(chunks * col_blocks));
  QST_RETURN_IF_ERROR(Launch(stream, shape, SumChunksKernel<Term, kOneColumn>, term, rows, cols,
                             static_cast<unsigned>(col_blocks), partials));
  if constexpr (kOneColumn) {
    shape.block = dim3(kOneSumThreads);
    shape.grid = dim3(1);
    return Launch(stream, shape, SumAllPartialsKernel<Term>, term, chunks * col_blocks, partials);
  } else {
    shape.grid = dim3(static_cast<unsigned>(col_blocks));
    return Launch(stream, shape, SumPartialsKernel<Term>, term, chunks, cols, partials);
  }
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_COLUMN_SUMS_CUH_
