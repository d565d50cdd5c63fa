#include "kernels/cuda/gemm/plan.h"

namespace qst {
namespace cuda {
namespace {

// Tiles of cuBLASLt are at most this wide.
constexpr std::int64_t kPanelRowMultiple = 256;

std::int64_t ForwardScratchBytes(const LinearShape& s) {
  if (s.tokens <= kMaxFewTokens || IsSkinnyProduct(s.x, s.w_is_quantized, s.w, s.y, s.n)) return 0;
  const DType compute = LinearComputeType(s.x, s.w_is_quantized, s.w);
  const bool uses_panels = s.w_is_quantized || s.w != compute;
  const std::int64_t n = uses_panels ? PanelRows(s.n, s.k, compute) : s.n;
  const bool copies_x = s.x != compute;
  const bool finishes_y = s.y != DType::kF32 && s.y != compute;
  const std::int64_t rows =
      RowsAtATime(s.tokens, (copies_x ? RowBytes(s.k, compute) : 0) + (finishes_y ? RowBytes(n, DType::kF32) : 0));
  const bool copies_bias = s.has_bias && !finishes_y && s.y != DType::kF32;
  return (copies_x ? CopyBytes(rows, s.k, compute) : 0) + (finishes_y ? CopyBytes(rows, n, DType::kF32) : 0) +
         (copies_bias ? CopyBytes(1, s.n, s.y) : 0);
}

std::int64_t BackwardInputScratchBytes(const LinearShape& s) {
  const DType compute = LinearBackwardComputeType(s.w_is_quantized, s.w);
  if (compute == DType::kF32) return 0;
  return CopyBytes(RowsAtATime(s.tokens, RowBytes(s.n, compute)), s.n, compute);
}

std::int64_t BackwardWeightScratchBytes(const LinearShape& s) {
  const std::int64_t num_chunks = (s.tokens + kGradChunkRows - 1) / kGradChunkRows;
  const bool is_skinny = IsSkinnyGrad(s.x, s.n);
  const std::int64_t at_a_time =
      std::min(num_chunks, is_skinny ? SkinnyGradChunksAtATime(s.n, s.k) : GradChunksAtATime(s.n, s.k));
  const std::int64_t rows = std::min(s.tokens, at_a_time * kGradChunkRows);
  const std::int64_t sums = (s.tokens + kColumnSumRows - 1) / kColumnSumRows;
  return (s.x != DType::kF32 && !is_skinny ? CopyBytes(rows, s.k, DType::kF32) : 0) +
         (num_chunks > 1 ? CopyBytes(at_a_time * s.n, s.k, DType::kF32) : 0) +
         (s.has_bias ? CopyBytes(sums, s.n, DType::kF32) : 0);
}

}  // namespace

std::int64_t PanelRows(std::int64_t n, std::int64_t k, DType compute, const LinearLimits& limits) {
  const std::int64_t most = std::max(
      {limits.min_panel_rows, kPanelRowMultiple, limits.panel_bytes / std::max<std::int64_t>(RowBytes(k, compute), 1)});
  if (n <= most) return n;
  const std::int64_t num_panels = (n + most - 1) / most;
  const std::int64_t rows = RoundUp((n + num_panels - 1) / num_panels, kPanelRowMultiple);
  return rows <= most ? rows : most / kPanelRowMultiple * kPanelRowMultiple;
}

std::int64_t PanelBytes(std::int64_t n, std::int64_t k, DType compute, const LinearLimits& limits) {
  return CopyBytes(PanelRows(n, k, compute, limits), k, compute);
}

std::int64_t RowsAtATime(std::int64_t total_rows, std::int64_t bytes_per_row, const LinearLimits& limits) {
  if (total_rows * bytes_per_row <= limits.scratch_bytes) return total_rows;
  const std::int64_t fitting = limits.scratch_bytes / bytes_per_row / limits.scratch_rows * limits.scratch_rows;
  return std::min(total_rows, std::max(limits.scratch_rows, fitting));
}

std::int64_t GradChunksAtATime(std::int64_t n, std::int64_t k, const LinearLimits& limits) {
  const std::int64_t largest = std::max({CopyBytes(n, k, DType::kF32), CopyBytes(kGradChunkRows, k, DType::kF32),
                                         CopyBytes(kGradChunkRows, n, DType::kF32), std::int64_t{1}});
  return std::max<std::int64_t>(1, limits.partial_bytes / largest);
}

std::int64_t SkinnyGradChunksAtATime(std::int64_t n, std::int64_t k, const LinearLimits& limits) {
  return std::max<std::int64_t>(1, limits.partial_bytes / std::max<std::int64_t>(CopyBytes(n, k, DType::kF32), 1));
}

std::int64_t LinearScratchBytes(const LinearShape& shape) {
  return std::max({ForwardScratchBytes(shape), shape.needs_grad_x ? BackwardInputScratchBytes(shape) : 0,
                   shape.needs_grad_w ? BackwardWeightScratchBytes(shape) : 0});
}

std::int64_t LinearPanelBytes(const LinearShape& s) {
  std::int64_t bytes = 0;
  const DType forward = LinearComputeType(s.x, s.w_is_quantized, s.w);
  if (s.w_is_quantized || s.w != forward) bytes = PanelBytes(s.n, s.k, forward);
  const DType backward = LinearBackwardComputeType(s.w_is_quantized, s.w);
  if (s.needs_grad_x && (s.w_is_quantized || s.w != backward)) bytes = std::max(bytes, PanelBytes(s.n, s.k, backward));
  return 2 * bytes;
}

}  // namespace cuda
}  // namespace qst
