#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/gemm/rows.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kElems = 8;  // of a row, for each thread

// How a grid covers a matrix: blocks of kThreads threads, `lanes` of which share a row; wide rows take several blocks.
struct RowGrid {
  int lanes = kThreads;    // a power of two
  std::int64_t tiles = 1;  // blocks beside each other in a row
  LaunchShape shape;
};

RowGrid MakeRowGrid(std::int64_t rows, std::int64_t cols) {
  RowGrid grid;
  const std::int64_t groups = CeilDiv(cols, kElems);
  while (grid.lanes > 1 && grid.lanes / 2 >= groups) grid.lanes /= 2;
  grid.tiles = CeilDiv(groups, grid.lanes);
  grid.shape.grid = dim3(static_cast<unsigned>(CeilDiv(rows, kThreads / grid.lanes) * grid.tiles));
  grid.shape.block = dim3(kThreads);
  return grid;
}

struct Place {
  std::int64_t row;
  std::int64_t col;
};

__device__ __forceinline__ Place PlaceOfThread(int lanes, std::int64_t tiles) {
  const std::int64_t row_block = blockIdx.x / tiles;
  const std::int64_t tile = blockIdx.x % tiles;
  return Place{row_block * (kThreads / lanes) + threadIdx.x / lanes, (tile * lanes + threadIdx.x % lanes) * kElems};
}

template <typename From, typename To>
__global__ void __launch_bounds__(kThreads)
    CopyRowsKernel(int lanes, std::int64_t tiles, const From* from, std::int64_t from_rows, std::int64_t from_ld,
                   bool from_is_aligned, To* to, std::int64_t rows, std::int64_t cols, std::int64_t to_ld,
                   bool to_is_aligned) {
  const Place at = PlaceOfThread(lanes, tiles);
  if (at.row >= rows || at.col >= cols) return;
  float values[kElems];
  LoadUpTo8(from + at.row * from_ld + at.col, at.row < from_rows ? cols - at.col : 0, from_is_aligned, values);
  StoreUpTo8(values, cols - at.col, to_is_aligned, to + at.row * to_ld + at.col);
}

// y = (sums + bias) + y, the parts that there are.
template <typename Y>
__global__ void __launch_bounds__(kThreads)
    FinishRowsKernel(int lanes, std::int64_t tiles, const float* sums, std::int64_t sums_ld, const float* bias, Y* y,
                     std::int64_t rows, std::int64_t cols, std::int64_t y_ld, bool y_is_aligned, bool accumulate) {
  const Place at = PlaceOfThread(lanes, tiles);
  if (at.row >= rows || at.col >= cols) return;
  const std::int64_t count = cols - at.col;
  float values[kElems] = {};
  if (sums != nullptr) LoadUpTo8(sums + at.row * sums_ld + at.col, count, true, values);
  Y* const to = y + at.row * y_ld + at.col;
#pragma unroll
  for (int i = 0; i < kElems; ++i) {
    if (i >= count) break;
    if (bias != nullptr) values[i] += bias[at.col + i];
    if (accumulate) values[i] += ToFloat(to[i]);
  }
  StoreUpTo8(values, count, y_is_aligned, to);
}

__global__ void __launch_bounds__(kThreads)
    AddPartialSumsKernel(const float* partial, std::int64_t ld, std::int64_t stride, std::int64_t num_partials,
                         float* out, std::int64_t rows, std::int64_t cols, std::int64_t out_ld, bool accumulate) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= rows * cols) return;
  const std::int64_t row = index / cols;
  const std::int64_t col = index % cols;
  float* const to = out + row * out_ld + col;
  float sum = accumulate ? *to : 0.0f;
  const float* from = partial + row * ld + col;
#pragma unroll 8
  for (std::int64_t i = 0; i < num_partials; ++i) sum += from[i * stride];
  *to = sum;
}

// A block a chunk of kColumnSumRows rows and kThreads columns.
__global__ void __launch_bounds__(kThreads)
    SumColumnsKernel(const float* x, std::int64_t rows, std::int64_t cols, std::int64_t ld, std::int64_t tiles,
                     float* sums, std::int64_t sums_ld) {
  const std::int64_t chunk = blockIdx.x / tiles;
  const std::int64_t col = blockIdx.x % tiles * kThreads + threadIdx.x;
  if (col >= cols) return;
  const std::int64_t begin = chunk * kColumnSumRows;
  const std::int64_t end = min(rows, begin + kColumnSumRows);
  const float* from = x + begin * ld + col;
  float sum = 0.0f;
#pragma unroll 8
  for (std::int64_t row = begin; row < end; ++row, from += ld) sum += *from;
  sums[chunk * sums_ld + col] = sum;
}

}  // namespace

absl::Status CopyRows(Stream& stream, const ConstMatrixView& from, const MatrixView& to) {
  const RowGrid grid = MakeRowGrid(to.rows, to.cols);
  return DispatchFloat(from.dtype, [&](auto* from_tag) {
    using From = std::remove_pointer_t<decltype(from_tag)>;
    return DispatchFloat(to.dtype, [&](auto* to_tag) {
      using To = std::remove_pointer_t<decltype(to_tag)>;
      return Launch(stream, grid.shape, CopyRowsKernel<From, To>, grid.lanes, grid.tiles, from.row<From>(0), from.rows,
                    from.ld, RowsAreAligned(from), to.row<To>(0), to.rows, to.cols, to.ld, RowsAreAligned(to));
    });
  });
}

absl::Status FinishRows(Stream& stream, const ConstMatrixView& sums, const ConstMatrixView& bias, const MatrixView& y,
                        bool accumulate) {
  const RowGrid grid = MakeRowGrid(y.rows, y.cols);
  return DispatchFloat(y.dtype, [&](auto* tag) {
    using Y = std::remove_pointer_t<decltype(tag)>;
    return Launch(stream, grid.shape, FinishRowsKernel<Y>, grid.lanes, grid.tiles, sums.row<float>(0), sums.ld,
                  bias.empty() ? nullptr : bias.row<float>(0), y.row<Y>(0), y.rows, y.cols, y.ld, RowsAreAligned(y),
                  accumulate);
  });
}

absl::Status AddPartialSums(Stream& stream, const float* partial, std::int64_t ld, std::int64_t stride,
                            std::int64_t num_partials, const MatrixView& out, bool accumulate) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(out.rows * out.cols, kThreads)));
  shape.block = dim3(kThreads);
  return Launch(stream, shape, AddPartialSumsKernel, partial, ld, stride, num_partials, out.row<float>(0), out.rows,
                out.cols, out.ld, accumulate);
}

absl::Status SumColumns(Stream& stream, const ConstMatrixView& x, float* scratch, const MatrixView& sums,
                        bool accumulate) {
  const std::int64_t num_chunks = CeilDiv(x.rows, kColumnSumRows);
  const std::int64_t tiles = CeilDiv(x.cols, kThreads);
  const std::int64_t scratch_ld = PaddedCols(x.cols, DType::kF32);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(num_chunks * tiles));
  shape.block = dim3(kThreads);
  QST_RETURN_IF_ERROR(
      Launch(stream, shape, SumColumnsKernel, x.row<float>(0), x.rows, x.cols, x.ld, tiles, scratch, scratch_ld));
  return AddPartialSums(stream, scratch, scratch_ld, scratch_ld, num_chunks, sums, accumulate);
}

}  // namespace cuda
}  // namespace qst
