#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm/blas.cuh"
#include "kernels/cuda/gemm/grad_weight.cuh"
#include "kernels/cuda/gemm/panels.cuh"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/gemm/rows.cuh"
#include "kernels/cuda/gemm/weight_product.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

// The batch for which cuBLASLt chooses the algorithm of several chunks.
constexpr std::int64_t kPinnedBatch = 8;

// partial[n, k] = grad_y[rows, n]^T x[rows, k], `batch` times for chunks of kGradChunkRows rows, or once for fewer.
ProductShape ChunkShape(std::int64_t n, std::int64_t k, std::int64_t rows, std::int64_t batch) {
  ProductShape s;
  s.m = n;
  s.n = k;
  s.k = rows;
  s.batch = batch;
  s.left_is_transposed = true;
  return s;
}

ProductLayout ChunkLayout(std::int64_t grad_y_ld, std::int64_t x_ld, std::int64_t out_ld, std::int64_t out_rows) {
  ProductLayout layout;
  layout.left_ld = grad_y_ld;
  layout.right_ld = x_ld;
  layout.out_ld = out_ld;
  layout.left_stride = kGradChunkRows * grad_y_ld;
  layout.right_stride = kGradChunkRows * x_ld;
  layout.out_stride = out_rows * out_ld;
  return layout;
}

// Elements between rows as cuBLASLt may be told: a single row has none, so they are those of a copy.
std::int64_t LdOf(const ConstMatrixView& m) { return m.rows == 1 ? PaddedCols(m.cols, m.dtype) : m.ld; }

// One product of rows that cuBLASLt takes.
absl::Status MultiplyChunk(Blas& blas, const ProductLayout& layout, const ConstMatrixView& grad_y,
                           const ConstMatrixView& x, float* out, bool accumulate) {
  ProductOperands operands;
  operands.left = grad_y.data;
  operands.right = x.data;
  operands.out = out;
  operands.accumulate = accumulate;
  return blas.Multiply(ChunkShape(grad_y.cols, x.cols, kGradChunkRows, 1), ChunkShape(grad_y.cols, x.cols, x.rows, 1),
                       layout, operands);
}

// Products of all chunks of the rows to out, out + layout.out_stride, ...: whole chunks as one batch.
absl::Status MultiplyChunks(Blas& blas, const ProductLayout& layout, const ConstMatrixView& grad_y,
                            const ConstMatrixView& x, float* out) {
  const std::int64_t num_whole = x.rows / kGradChunkRows;
  std::int64_t done = 0;
  const ProductShape pinned = ChunkShape(grad_y.cols, x.cols, kGradChunkRows, kPinnedBatch);
  const ProductShape whole = ChunkShape(grad_y.cols, x.cols, kGradChunkRows, num_whole);
  if (num_whole > 1) {
    QST_ASSIGN_OR_RETURN(const bool takes_batch, blas.Takes(pinned, whole, layout));
    if (takes_batch) {
      ProductOperands operands;
      operands.left = grad_y.data;
      operands.right = x.data;
      operands.out = out;
      QST_RETURN_IF_ERROR(blas.Multiply(pinned, whole, layout, operands));
      done = num_whole;
    }
  }
  for (; done * kGradChunkRows < x.rows; ++done) {
    const std::int64_t begin = done * kGradChunkRows;
    const std::int64_t end = std::min(x.rows, begin + kGradChunkRows);
    QST_RETURN_IF_ERROR(MultiplyChunk(blas, layout, Rows(grad_y, begin, end), Rows(x, begin, end),
                                      out + done * layout.out_stride, /*accumulate=*/false));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status GradOfWeight(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                          const MatrixView& grad_w, bool accumulate) {
  const std::int64_t n = grad_y.cols;
  const std::int64_t k = x.cols;
  const std::int64_t num_chunks = CeilDiv(x.rows, kGradChunkRows);
  if (num_chunks == 0) return AddPartialSums(stream, nullptr, 0, 0, 0, grad_w, accumulate);
  QST_ASSIGN_OR_RETURN(LinearState* const state, LinearState::Of(stream));
  Blas& blas = state->blas;

  bool copies_x = x.dtype != DType::kF32 || !RowsAreAligned(x);
  bool copies_grad_y = !RowsAreAligned(grad_y);
  const bool is_direct = num_chunks == 1 && RowsAreAligned(grad_w);
  const auto layout = [&] {
    return ChunkLayout(copies_grad_y ? PaddedCols(n, DType::kF32) : LdOf(grad_y),
                       copies_x ? PaddedCols(k, DType::kF32) : LdOf(x),
                       is_direct ? LdOf(grad_w) : PaddedCols(k, DType::kF32), n);
  };
  // The last chunk may have a number of rows that the algorithm does not take: then zeros make it whole.
  const std::int64_t last_rows = x.rows - (num_chunks - 1) * kGradChunkRows;
  QST_ASSIGN_OR_RETURN(const bool takes_last,
                       blas.Takes(ChunkShape(n, k, kGradChunkRows, 1), ChunkShape(n, k, last_rows, 1), layout()));
  if (!takes_last) copies_x = copies_grad_y = true;

  const std::int64_t at_a_time = std::min(num_chunks, GradChunksAtATime(n, k, state->limits));
  const std::int64_t most_rows = takes_last ? std::min(x.rows, at_a_time * kGradChunkRows) : at_a_time * kGradChunkRows;
  QST_ASSIGN_OR_RETURN(void* const scratch, stream.Scratch((copies_x ? CopyBytes(most_rows, k, DType::kF32) : 0) +
                                                           (copies_grad_y ? CopyBytes(most_rows, n, DType::kF32) : 0) +
                                                           (is_direct ? 0 : CopyBytes(at_a_time * n, k, DType::kF32))));
  ScratchPieces pieces(scratch);
  const MatrixView x_copy = copies_x ? pieces.Matrix(most_rows, k, DType::kF32) : MatrixView();
  const MatrixView grad_y_copy = copies_grad_y ? pieces.Matrix(most_rows, n, DType::kF32) : MatrixView();
  float* const partial = is_direct ? nullptr : pieces.Matrix(at_a_time * n, k, DType::kF32).row<float>(0);

  for (std::int64_t chunk = 0; chunk < num_chunks; chunk += at_a_time) {
    const std::int64_t chunk_end = std::min(num_chunks, chunk + at_a_time);
    const std::int64_t begin = chunk * kGradChunkRows;
    const std::int64_t end = std::min(x.rows, chunk_end * kGradChunkRows);
    const std::int64_t rows = takes_last ? end - begin : (chunk_end - chunk) * kGradChunkRows;
    ConstMatrixView x_rows = Rows(x, begin, end);
    ConstMatrixView grad_y_rows = Rows(grad_y, begin, end);
    if (copies_x) {
      QST_RETURN_IF_ERROR(CopyRows(stream, x_rows, Rows(x_copy, 0, rows)));
      x_rows = Rows(x_copy, 0, rows);
    }
    if (copies_grad_y) {
      QST_RETURN_IF_ERROR(CopyRows(stream, grad_y_rows, Rows(grad_y_copy, 0, rows)));
      grad_y_rows = Rows(grad_y_copy, 0, rows);
    }
    if (is_direct) return MultiplyChunk(blas, layout(), grad_y_rows, x_rows, grad_w.row<float>(0), accumulate);
    const ProductLayout chunks = layout();
    QST_RETURN_IF_ERROR(MultiplyChunks(blas, chunks, grad_y_rows, x_rows, partial));
    QST_RETURN_IF_ERROR(AddPartialSums(stream, partial, chunks.out_ld, chunks.out_stride, chunk_end - chunk, grad_w,
                                       accumulate || chunk > 0));
  }
  return absl::OkStatus();
}

absl::Status GradOfBias(Stream& stream, const ConstMatrixView& grad_y, const MatrixView& grad_bias, bool accumulate) {
  QST_ASSIGN_OR_RETURN(void* const scratch,
                       stream.Scratch(CopyBytes(CeilDiv(grad_y.rows, kColumnSumRows), grad_y.cols, DType::kF32)));
  return SumColumns(stream, grad_y, static_cast<float*>(scratch), grad_bias, accumulate);
}

}  // namespace cuda
}  // namespace qst
