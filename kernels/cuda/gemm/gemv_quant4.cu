#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/gemm/gemv.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/quant4.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"

namespace qst {
namespace cuda {
namespace {

// y[t, row] = sum over blocks b of absmax(b) * (sum over b of table[code] * x[t])
//
// A lane takes 16 bytes of a row at a time, 32 codes, which lie in one block: it adds up table value times x and
// multiplies by the block's constant once. Both values of a byte come from one table in shared memory, stored as often
// as lanes read at once (sixteen of 8 bytes), so that none waits for another.
constexpr int kChunkElems = 32;
constexpr int kStep = kChunkElems * kWarpSize;  // columns that a warp takes at a time
constexpr int kCopies = 16;
constexpr int kTableBytes = 256 * kCopies * static_cast<int>(sizeof(float2));
constexpr int kMapBytes = 256 * static_cast<int>(sizeof(float));

// 32 codes and what their block's constant is made of.
struct Chunk {
  uint4 codes;
  float absmax;  // or, with double quantization, the nested one
  unsigned absmax_code;
};

__device__ __forceinline__ Chunk LoadChunk(const Quant4Operand& w, std::int64_t element) {
  const std::int64_t block = BlockOfElement(w, element);
  Chunk chunk;
  chunk.codes = __ldcs(reinterpret_cast<const uint4*>(w.view.packed + element / 2));
  if (w.view.absmax_codes == nullptr) {
    chunk.absmax = __ldg(w.view.absmax + block);
    chunk.absmax_code = 0;
  } else {
    chunk.absmax = __ldg(w.view.nested_absmax + (block >> w.nested_shift));
    chunk.absmax_code = __ldg(w.view.absmax_codes + block);
  }
  return chunk;
}

__device__ __forceinline__ unsigned Word(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// Blocks a multiprocessor, at least. One token's kernel has two without being held to it; made to leave room for three
// it was no faster.
template <int kTokens>
constexpr int kBlocks = kTokens == 1 ? 1 : 2;

// A block makes rows of kTokens tokens; the blocks of the same rows follow each other in the grid, so that they find
// the weight in L2.
template <int kRows, int kTokens>
__global__ void __launch_bounds__(kGemvThreads, kBlocks<kTokens>)
    Quant4GemvKernel(const __grid_constant__ GemvOperands op, const __grid_constant__ Quant4Operand w, int tile,
                     int token_blocks) {
  QST_DYNAMIC_SHARED(shared);
  float2(*const table)[kCopies] = reinterpret_cast<float2(*)[kCopies]>(shared);
  float* const map = reinterpret_cast<float*>(shared + kTableBytes);
  float4* const staged = reinterpret_cast<float4*>(shared + kTableBytes + kMapBytes);
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t row_block = blockIdx.x / token_blocks;
  const std::int64_t first_token = blockIdx.x % token_blocks * kTokens;
  const std::int64_t first_row = (row_block * kGemvWarps + threadIdx.x / kWarpSize) * kRows;
  const bool is_nested = w.view.absmax_codes != nullptr;

  // The first words are on their way while the tables are filled.
  Chunk next[kRows] = {};
  const auto load_next = [&](std::int64_t col) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first_row + r < op.n && col < op.k) next[r] = LoadChunk(w, (first_row + r) * op.k + col);
    }
  };
  load_next(kChunkElems * lane);
  for (int i = threadIdx.x; i < 256 * kCopies; i += kGemvThreads) {
    const int byte = i / kCopies;
    table[byte][i % kCopies] = make_float2(w.table[byte >> 4], w.table[byte & 15]);
  }
  if (is_nested) map[threadIdx.x] = __ldg(w.view.nested_map + threadIdx.x);

  float sums[kRows][kTokens] = {};
  for (std::int64_t begin = 0; begin < op.k; begin += tile) {
    __syncthreads();
    StageX<kTokens>(op, first_token, begin, tile, staged);
    __syncthreads();
    const std::int64_t end = min(op.k, begin + tile);
#pragma unroll 1
    for (std::int64_t col = begin + kChunkElems * lane; col < end; col += kStep) {
      Chunk chunk[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) chunk[r] = next[r];
      load_next(col + kStep);
      float partial[kRows][kTokens] = {};
      // The chunk's eight groups of x; SwizzledGroup permutes them by the lane.
      const float4* const groups = staged + static_cast<int>(col - begin) / 4;
#pragma unroll
      for (int half_word = 0; half_word < 8; ++half_word) {
        // The values of four codes of each row, then all tokens with them.
        float2 values[kRows][2];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const unsigned codes = Word(chunk[r].codes, half_word / 2) >> 16 * (half_word % 2);
          values[r][0] = table[codes & 255u][lane % kCopies];
          values[r][1] = table[codes >> 8 & 255u][lane % kCopies];
        }
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          const float4 x = groups[t * (tile / 4) + (half_word ^ (lane & 7))];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            float sum = partial[r][t];
            sum = __fmaf_rn(values[r][0].x, x.x, sum);
            sum = __fmaf_rn(values[r][0].y, x.y, sum);
            sum = __fmaf_rn(values[r][1].x, x.z, sum);
            partial[r][t] = __fmaf_rn(values[r][1].y, x.w, sum);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float absmax = is_nested ? UnnestAbsmax(map[chunk[r].absmax_code], chunk[r].absmax, w.view.nested_offset)
                                       : chunk[r].absmax;
#pragma unroll
        for (int t = 0; t < kTokens; ++t) sums[r][t] = __fmaf_rn(absmax, partial[r][t], sums[r][t]);
      }
    }
  }
  FinishRowsOfWarp(op, first_token, first_row, sums);
}

template <int kRows, int kTokens>
absl::Status LaunchKernel(Stream& stream, const GemvOperands& op, const Quant4Operand& w) {
  const int tile = StagedColumns(op.k, kTokens, kStep);
  const std::int64_t token_blocks = CeilDiv(op.tokens, kTokens);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(op.n, kGemvWarps * kRows) * token_blocks));
  shape.block = dim3(kGemvThreads);
  shape.dynamic_shared_bytes = kTableBytes + kMapBytes + std::int64_t{4} * kTokens * tile;
  return Launch(stream, shape, Quant4GemvKernel<kRows, kTokens>, op, w, tile, static_cast<int>(token_blocks));
}

template <int kTokens>
absl::Status LaunchForRows(Stream& stream, const GemvOperands& op, const Quant4Operand& w) {
  // Several rows share x and the filling of tables, but multiprocessors should have work: with one token most of them,
  // with more, whose blocks take longer, more than one block each.
  const auto fills_device = [&](std::int64_t rows) {
    const std::int64_t blocks = CeilDiv(op.n, kGemvWarps * rows) * CeilDiv(op.tokens, kTokens);
    const std::int64_t processors = stream.num_multiprocessors;
    return kTokens == 1 ? 4 * blocks >= 3 * processors : 2 * blocks >= 3 * processors;
  };
  if (fills_device(4)) return LaunchKernel<4, kTokens>(stream, op, w);
  if (kTokens > 1 && fills_device(2)) return LaunchKernel<2, kTokens>(stream, op, w);
  return LaunchKernel<1, kTokens>(stream, op, w);
}

}  // namespace

bool IsWholeWords(const Quant4View& w) {
  return w.cols % kChunkElems == 0 && w.block_size % kChunkElems == 0 && IsAligned(w.packed);
}

absl::Status LaunchQuant4Gemv(Stream& stream, const GemvOperands& op, const Quant4View& w) {
  const Quant4Operand operand = MakeQuant4Operand(w);
  if (op.tokens <= 1) return LaunchForRows<1>(stream, op, operand);
  if (op.tokens <= 2) return LaunchForRows<2>(stream, op, operand);
  // Eight at once would leave a multiprocessor registers for one block.
  return LaunchForRows<4>(stream, op, operand);
}

}  // namespace cuda
}  // namespace qst
