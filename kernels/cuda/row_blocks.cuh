// Kernels that reduce each row: how many threads share a row, and sums over them. Both depend on the row's length
// alone, so a row's result has the same bits whatever lies beside it.
#ifndef QST_KERNELS_CUDA_ROW_BLOCKS_CUH_
#define QST_KERNELS_CUDA_ROW_BLOCKS_CUH_

#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"

namespace qst {
namespace cuda {

// More would leave too few registers for what a thread holds. Launch bounds add that one block a multiprocessor is
// enough; else the compiler spills registers to fit several.
constexpr int kMaxRowThreads = 512;
// Groups of adjacent elements that a thread keeps in registers. Thread t has groups t, t + blockDim.x, ... of its row;
// of a row that is too long for all threads together, the rest is read again.
constexpr int kHeldGroups = 4;

// blockDim.x threads a row: a power of two, at least a warp. blockDim.y rows a block: several if a warp does a row.
inline LaunchShape RowBlocks(std::int64_t rows, std::int64_t groups) {
  constexpr unsigned kWarpsABlock = 4;
  unsigned threads = kWarpSize;
  while (threads < kMaxRowThreads && groups > static_cast<std::int64_t>(threads) * kHeldGroups) threads *= 2;
  LaunchShape shape;
  shape.block = dim3(threads, threads == kWarpSize ? kWarpsABlock : 1);
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(rows, shape.block.y)));
  return shape;
}

__device__ __forceinline__ std::int64_t RowOfThread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

// Every thread of the row gets the sum. `shared` holds kWarpSize floats, and may be used again after the call.
__device__ __forceinline__ float RowSum(float x, float* shared) {
  return blockDim.x == kWarpSize ? WarpSum(x) : BlockSum(x, shared);
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ROW_BLOCKS_CUH_
