#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "kernels/cuda/gemm/gemv.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/quant4.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"

namespace qst {
namespace cuda {
namespace {

// Columns that a warp takes at a time, eight a lane.
constexpr int kStep = 8 * kWarpSize;

// Weights eight columns at a time, zero beyond the row.
template <typename W>
struct DenseWeight {
  const W* data;
  std::int64_t ld;
  bool is_aligned;

  __device__ __forceinline__ void Load(std::int64_t row, std::int64_t col, std::int64_t k, float (&values)[8]) const {
    LoadUpTo8(data + row * ld + col, k - col, is_aligned, values);
  }
};

// Any shape and alignment, byte by byte.
struct Quant4Weight {
  Quant4Operand w;

  __device__ __forceinline__ void Load(std::int64_t row, std::int64_t col, std::int64_t k, float (&values)[8]) const {
    std::int64_t block = -1;
    float absmax = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[i] = 0.0f;
      if (col + i >= k) continue;
      const std::int64_t element = row * k + col + i;
      if (BlockOfElement(w, element) != block) {
        block = BlockOfElement(w, element);
        absmax = BlockAbsmax(w, block);
      }
      values[i] = __fmul_rn(w.table[CodeOfElement(w, element)], absmax);
    }
  }
};

// A warp makes kRows rows; x passes through shared memory `tile` columns at a time.
template <typename Weight, int kRows, int kTokens>
__global__ void __launch_bounds__(kGemvThreads, kTokens == 8 ? 2 : 3)
    GemvKernel(const __grid_constant__ GemvOperands op, const __grid_constant__ Weight weight, int tile) {
  QST_DYNAMIC_SHARED(shared);
  float4* const staged = reinterpret_cast<float4*>(shared);
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t first_row = (static_cast<std::int64_t>(blockIdx.x) * kGemvWarps + threadIdx.x / kWarpSize) * kRows;
  float sums[kRows][kTokens] = {};
  for (std::int64_t begin = 0; begin < op.k; begin += tile) {
    __syncthreads();
    StageX<kTokens>(op, 0, begin, tile, staged);
    __syncthreads();
    const std::int64_t end = min(op.k, begin + tile);
    for (std::int64_t col = begin + 8 * lane; col < end; col += kStep) {
      float weights[kRows][8];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first_row + r < op.n) {
          weight.Load(first_row + r, col, op.k, weights[r]);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i) weights[r][i] = 0.0f;
        }
      }
      const int group = static_cast<int>(col - begin) / 4;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float4 low = staged[t * (tile / 4) + SwizzledGroup(group)];
        const float4 high = staged[t * (tile / 4) + SwizzledGroup(group + 1)];
        const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < 8; ++i) sums[r][t] = __fmaf_rn(weights[r][i], x[i], sums[r][t]);
        }
      }
    }
  }
  FinishRowsOfWarp(op, 0, first_row, sums);
}

template <int kTokens, typename Weight>
absl::Status LaunchGemv(Stream& stream, const GemvOperands& op, const Weight& weight) {
  constexpr int kRows = 2;
  const int tile = StagedColumns(op.k, kTokens, kStep);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(op.n, kGemvWarps * kRows)));
  shape.block = dim3(kGemvThreads);
  shape.dynamic_shared_bytes = std::int64_t{4} * kTokens * tile;
  return Launch(stream, shape, GemvKernel<Weight, kRows, kTokens>, op, weight, tile);
}

template <typename Weight>
absl::Status LaunchForTokens(Stream& stream, const GemvOperands& op, const Weight& weight) {
  if (op.tokens <= 1) return LaunchGemv<1>(stream, op, weight);
  if (op.tokens <= 2) return LaunchGemv<2>(stream, op, weight);
  if (op.tokens <= 4) return LaunchGemv<4>(stream, op, weight);
  static_assert(kMaxFewTokens == 8);
  return LaunchGemv<8>(stream, op, weight);
}

}  // namespace

absl::Status LinearOfFewTokens(Stream& stream, const ConstMatrixView& x, const WeightView& w,
                               const ConstMatrixView& bias, const MatrixView& y, bool accumulate) {
  GemvOperands op;
  op.x = x.data;
  op.x_dtype = x.dtype;
  op.x_ld = x.ld;
  op.x_is_aligned = RowsAreAligned(x);
  op.y = y.data;
  op.y_dtype = y.dtype;
  op.y_ld = y.ld;
  op.bias = bias.empty() ? nullptr : bias.row<float>(0);
  op.accumulate = accumulate;
  op.tokens = x.rows;
  op.n = w.rows();
  op.k = w.cols();
  if (w.is_quantized) {
    if (IsWholeWords(w.quant4)) return LaunchQuant4Gemv(stream, op, w.quant4);
    return LaunchForTokens(stream, op, Quant4Weight{MakeQuant4Operand(w.quant4)});
  }
  return DispatchFloat(w.dense.dtype, [&](auto* tag) {
    using W = std::remove_pointer_t<decltype(tag)>;
    return LaunchForTokens(stream, op, DenseWeight<W>{w.dense.row<W>(0), w.dense.ld, RowsAreAligned(w.dense)});
  });
}

}  // namespace cuda
}  // namespace qst
