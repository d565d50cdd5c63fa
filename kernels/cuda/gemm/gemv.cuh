// Linear layers of few tokens (generation): each weight is read once (4-bit ones of more than four tokens twice, the
// second time from L2) and multiplied as it comes, in float32. For .cu files.
//
// A warp makes one or a few rows of W times its block's tokens. A lane adds its columns in ascending order, the lanes
// are added in a tree, all for each token by itself: a token's bits depend neither on the other tokens nor on their
// number. They may differ in the last bits from what a product of many tokens (linear.cu) gives: there, 4-bit weights
// and x are rounded to a half type first, and sums run over tiles.
#ifndef QST_KERNELS_CUDA_GEMM_GEMV_CUH_
#define QST_KERNELS_CUDA_GEMM_GEMV_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// Linear (ops.h) for at most kMaxFewTokens tokens: any dtypes, shapes and alignments; 4-bit weights as checked by
// CheckQuant4ForCuda. Bits depend on the weight's layout too (whole words of codes or not), never on x's or y's.
absl::Status LinearOfFewTokens(Stream& stream, const ConstMatrixView& x, const WeightView& w,
                               const ConstMatrixView& bias, const MatrixView& y, bool accumulate);

// ---- Shared by the kernels
// ----------------------------------------------------------------------------------------------

constexpr int kGemvThreads = 256;
constexpr int kGemvWarps = kGemvThreads / kWarpSize;

// x, y and bias as kernels get them. Their types are looked at outside of the inner loops.
struct GemvOperands {
  const void* x = nullptr;
  DType x_dtype = DType::kF32;
  std::int64_t x_ld = 0;
  bool x_is_aligned = false;
  void* y = nullptr;
  DType y_dtype = DType::kF32;
  std::int64_t y_ld = 0;
  const float* bias = nullptr;
  bool accumulate = false;
  std::int64_t tokens = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
};

// Groups of four columns of x in shared memory are permuted among eight neighbours, so that lanes that read groups 1, 2
// or 8 apart meet no bank conflict.
__device__ __forceinline__ int SwizzledGroup(int group) { return group ^ (group >> 3 & 7); }

__device__ __forceinline__ void LoadX(const GemvOperands& op, std::int64_t token, std::int64_t col,
                                      float (&values)[8]) {
  const std::int64_t count = token < op.tokens ? op.k - col : 0;
  const std::int64_t offset = token * op.x_ld + col;
  if (op.x_dtype == DType::kF32) {
    LoadUpTo8(static_cast<const float*>(op.x) + offset, count, op.x_is_aligned, values);
  } else if (op.x_dtype == DType::kBF16) {
    LoadUpTo8(static_cast<const BF16*>(op.x) + offset, count, op.x_is_aligned, values);
  } else {
    LoadUpTo8(static_cast<const F16*>(op.x) + offset, count, op.x_is_aligned, values);
  }
}

// Columns [begin, begin + tile) of kTokens rows of x from first_token on, zero beyond the matrix, to tokens of `tile`
// floats each; tile is a multiple of 32.
template <int kTokens>
__device__ __forceinline__ void StageX(const GemvOperands& op, std::int64_t first_token, std::int64_t begin, int tile,
                                       float4* staged) {
  const int groups = tile / 4;
  for (int i = threadIdx.x; i < kTokens * (tile / 8); i += kGemvThreads) {
    const int token = i / (tile / 8);
    const int pair = i % (tile / 8);
    float values[8];
    LoadX(op, first_token + token, begin + 8 * pair, values);
    staged[token * groups + SwizzledGroup(2 * pair)] = make_float4(values[0], values[1], values[2], values[3]);
    staged[token * groups + SwizzledGroup(2 * pair + 1)] = make_float4(values[4], values[5], values[6], values[7]);
  }
}

// y[token, row] (+)= sum + bias[row], rounded once.
__device__ __forceinline__ void FinishElement(const GemvOperands& op, std::int64_t token, std::int64_t row, float sum) {
  if (op.bias != nullptr) sum += op.bias[row];
  const std::int64_t offset = token * op.y_ld + row;
  const auto finish = [&](auto* y) {
    using Y = std::remove_pointer_t<decltype(y)>;
    if (op.accumulate) sum += ToFloat(y[offset]);
    y[offset] = FromFloat<Y>(sum);
  };
  if (op.y_dtype == DType::kF32) {
    finish(static_cast<float*>(op.y));
  } else if (op.y_dtype == DType::kBF16) {
    finish(static_cast<BF16*>(op.y));
  } else {
    finish(static_cast<F16*>(op.y));
  }
}

// Adds up the lanes' sums of a warp's rows and tokens; lane i finishes the i-th.
template <int kRows, int kTokens>
__device__ __forceinline__ void FinishRowsOfWarp(const GemvOperands& op, std::int64_t first_token,
                                                 std::int64_t first_row, const float (&sums)[kRows][kTokens]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = WarpSum(sums[r][t]);
      if (lane == r * kTokens + t && first_row + r < op.n && first_token + t < op.tokens) {
        FinishElement(op, first_token + t, first_row + r, sum);
      }
    }
  }
}

// Columns of x that are staged at a time for `tokens` rows: all, or what fits in kStagedBytes; a multiple of
// `multiple`.
inline int StagedColumns(std::int64_t k, int tokens, int multiple) {
  constexpr std::int64_t kStagedBytes = 64 << 10;
  const std::int64_t fitting = kStagedBytes / 4 / tokens / multiple * multiple;
  return static_cast<int>(std::min(RoundUp(k, multiple), fitting));
}

// The kernel of weights whose rows are whole 16-byte words of codes inside blocks; gemv_quant4.cu.
bool IsWholeWords(const Quant4View& w);
absl::Status LaunchQuant4Gemv(Stream& stream, const GemvOperands& op, const Quant4View& w);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_GEMV_CUH_
