// Which types, panels and scratch memory the linear ops of the CUDA backend work with: functions of shapes alone, so
// that a plan of a device's memory can be made where there is none.
#ifndef QST_KERNELS_CUDA_GEMM_PLAN_H_
#define QST_KERNELS_CUDA_GEMM_PLAN_H_

#include <algorithm>
#include <cstdint>

#include "kernels/dtype.h"

namespace qst {
namespace cuda {

// Up to this many tokens a linear layer is a matrix-vector product for each (gemv.cuh): generation.
inline constexpr std::int64_t kMaxFewTokens = 8;
// cuBLASLt chooses each product's algorithm for this many tokens, once.
inline constexpr std::int64_t kPinnedTokens = 4096;
// Rows that a product adds up in gradients of weights; longer sums go over such chunks in order.
inline constexpr std::int64_t kGradChunkRows = 512;
// Rows that a column sum (gradient of a bias) adds up before its chunks are.
inline constexpr std::int64_t kColumnSumRows = 128;
// Products of half types with up to this many columns of float32, and such gradients, have kernels of their own
// (skinny.cuh): downsampling in a side network.
inline constexpr std::int64_t kMaxSkinnyOutputs = 64;
// cuBLASLt's workspace, one a stream.
inline constexpr std::int64_t kBlasWorkspaceBytes = std::int64_t{32} << 20;

// How much memory linear ops work with at a time. Always these values, but in tests.
struct LinearLimits {
  // Scratch memory above this makes an op work on fewer rows at a time.
  std::int64_t scratch_bytes = std::int64_t{256} << 20;
  // Rows at a time are a multiple of this, and no fewer.
  std::int64_t scratch_rows = 256;
  // Of one panel, unless that is less than min_panel_rows: with fewer rows a product has too few tiles to keep a large
  // GPU busy at 4,096 tokens.
  std::int64_t panel_bytes = std::int64_t{64} << 20;
  std::int64_t min_panel_rows = 2048;
  // Of partial gradients.
  std::int64_t partial_bytes = std::int64_t{64} << 20;
};
// Each piece of scratch memory begins on a multiple of this.
inline constexpr std::int64_t kScratchAlignment = 256;

constexpr std::int64_t RoundUp(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Elements between rows of a copy: rows begin on 16 bytes.
constexpr std::int64_t PaddedCols(std::int64_t cols, DType dtype) { return RoundUp(cols, 16 / DTypeBytes(dtype)); }

// The type in which a product's factors are: f32 for f32 weights; else f16 if x or the weight is, else bf16.
constexpr DType LinearComputeType(DType x, bool w_is_quantized, DType w) {
  if (!w_is_quantized && w == DType::kF32) return DType::kF32;
  return x == DType::kF16 || (!w_is_quantized && w == DType::kF16) ? DType::kF16 : DType::kBF16;
}
// The same for gradients of x. They are often too small for f16, so half types stand as bf16.
constexpr DType LinearBackwardComputeType(bool w_is_quantized, DType w) {
  return !w_is_quantized && w == DType::kF32 ? DType::kF32 : DType::kBF16;
}

// Whether y[T, n] = x[T, k] W[n, k]^T of more than kMaxFewTokens tokens goes to the kernels of skinny.cuh, and whether
// its gradient of W does.
constexpr bool IsSkinnyProduct(DType x, bool w_is_quantized, DType w, DType y, std::int64_t n) {
  return x != DType::kF32 && !w_is_quantized && w == DType::kF32 && y == DType::kF32 && n <= kMaxSkinnyOutputs;
}
constexpr bool IsSkinnyGrad(DType x, std::int64_t n) { return x != DType::kF32 && n <= kMaxSkinnyOutputs; }

// Rows of a weight [n, k] that are unpacked at a time. A function of the weight's shape alone: it decides which
// products are made, and so bits. Panels are about equal and as large as the limits allow.
std::int64_t PanelRows(std::int64_t n, std::int64_t k, DType compute, const LinearLimits& limits = {});
// Bytes of one panel.
std::int64_t PanelBytes(std::int64_t n, std::int64_t k, DType compute, const LinearLimits& limits = {});

// Rows of a matrix that fit the limit of scratch memory at bytes_per_row each: all, or a multiple of scratch_rows.
std::int64_t RowsAtATime(std::int64_t total_rows, std::int64_t bytes_per_row, const LinearLimits& limits = {});
// Chunks of kGradChunkRows rows whose partial gradients [n, k] are made at a time.
std::int64_t GradChunksAtATime(std::int64_t n, std::int64_t k, const LinearLimits& limits = {});
// The same where IsSkinnyGrad, which copies nothing.
std::int64_t SkinnyGradChunksAtATime(std::int64_t n, std::int64_t k, const LinearLimits& limits = {});

// Bytes of a copy's row, and of a copy as a piece of scratch memory.
constexpr std::int64_t RowBytes(std::int64_t cols, DType dtype) { return PaddedCols(cols, dtype) * DTypeBytes(dtype); }
constexpr std::int64_t CopyBytes(std::int64_t rows, std::int64_t cols, DType dtype) {
  return RoundUp(rows * RowBytes(cols, dtype), kScratchAlignment);
}

// A linear layer y[T, n] = x[T, k] W[n, k]^T, for the planner of a device's memory.
struct LinearShape {
  std::int64_t tokens = 0, n = 0, k = 0;
  DType x = DType::kBF16;
  DType y = DType::kBF16;
  bool w_is_quantized = true;
  DType w = DType::kF32;  // of a dense weight
  bool has_bias = false;
  bool needs_grad_x = false;
  bool needs_grad_w = false;
};
// What its ops ask of Stream::Scratch, which ops share: of all layers on a stream, the largest counts. Exact for
// matrices whose rows begin on 16 bytes; others need copies on top.
std::int64_t LinearScratchBytes(const LinearShape& shape);
// Both panels, kept by the stream, which layers share: the largest counts.
std::int64_t LinearPanelBytes(const LinearShape& shape);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_PLAN_H_
