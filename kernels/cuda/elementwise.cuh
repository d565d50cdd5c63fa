// Runs a body on every element of a matrix, a group of adjacent elements a thread.
#ifndef QST_KERNELS_CUDA_ELEMENTWISE_CUH_
#define QST_KERNELS_CUDA_ELEMENTWISE_CUH_

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "absl/status/status.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

constexpr int kElementwiseThreads = 256;

// Blocks cover [blockDim.y rows, blockDim.x groups] each; those of one row of blocks follow each other in the grid.
struct ElementTiles {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  unsigned blocks_a_row = 0;
  bool is_wide = false;
};

// Body has
//   static constexpr int kWidth                                     elements a group
//   template <bool kWide> __device__ void Apply(row, col, count)    elements [col, col + count) of a row, at most kWidth;
//                                                                   kWide: exactly, and Packs may be used
template <typename Body>
__global__ void __launch_bounds__(kElementwiseThreads) ElementwiseKernel(Body body, ElementTiles tiles) {
  const unsigned row_block = blockIdx.x / tiles.blocks_a_row;
  const unsigned col_block = blockIdx.x - row_block * tiles.blocks_a_row;
  const std::int64_t row = static_cast<std::int64_t>(row_block) * blockDim.y + threadIdx.y;
  const std::int64_t col = (static_cast<std::int64_t>(col_block) * blockDim.x + threadIdx.x) * Body::kWidth;
  if (row >= tiles.rows || col >= tiles.cols) return;
  const std::int64_t left = tiles.cols - col;
  if (tiles.is_wide && left >= Body::kWidth) {
    body.template Apply<true>(row, col, Body::kWidth);
  } else {
    body.template Apply<false>(row, col, static_cast<int>(left < Body::kWidth ? left : Body::kWidth));
  }
}

namespace internal {

template <typename Body>
absl::Status LaunchTiles(Stream& stream, const Body& body, std::int64_t rows, std::int64_t cols, bool is_wide) {
  const std::int64_t groups = CeilDiv(cols, Body::kWidth);
  unsigned threads_x = 1;
  while (threads_x < kElementwiseThreads && threads_x < groups) threads_x *= 2;
  ElementTiles tiles;
  tiles.rows = rows;
  tiles.cols = cols;
  tiles.blocks_a_row = static_cast<unsigned>(CeilDiv(groups, threads_x));
  tiles.is_wide = is_wide;
  LaunchShape shape;
  shape.block = dim3(threads_x, kElementwiseThreads / threads_x);
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(rows, shape.block.y)) * tiles.blocks_a_row);
  return Launch(stream, shape, ElementwiseKernel<Body>, body, tiles);
}

}  // namespace internal

// Body on [rows, cols]. `operands`: all matrices, and vectors as one row, whose groups Apply<true> accesses as Packs.
template <typename Body>
absl::Status LaunchByRows(Stream& stream, const Body& body, std::int64_t rows, std::int64_t cols,
                          std::initializer_list<ConstMatrixView> operands) {
  const bool is_wide = std::all_of(operands.begin(), operands.end(),
                                   [](const ConstMatrixView& m) { return AllowsPacks(m, Body::kWidth); });
  return internal::LaunchTiles(stream, body, rows, cols, is_wide);
}

// The same for a body to which row and column say nothing but where its operands, all [rows, cols], lie: without gaps
// between their rows they are one row.
template <typename Body>
absl::Status LaunchElementwise(Stream& stream, const Body& body, std::int64_t rows, std::int64_t cols,
                               std::initializer_list<ConstMatrixView> operands) {
  if (!std::all_of(operands.begin(), operands.end(), [cols](const ConstMatrixView& m) { return m.ld == cols; })) {
    return LaunchByRows(stream, body, rows, cols, operands);
  }
  const bool is_wide = std::all_of(operands.begin(), operands.end(), [](const ConstMatrixView& m) {
    return AllowsPacks(ConstMatrixView(m.data, m.dtype, 1, m.cols, m.cols), Body::kWidth);
  });
  return internal::LaunchTiles(stream, body, 1, rows * cols, is_wide);
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ELEMENTWISE_CUH_
