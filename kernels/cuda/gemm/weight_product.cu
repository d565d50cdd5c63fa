#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm/blas.cuh"
#include "kernels/cuda/gemm/panels.cuh"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/gemm/rows.cuh"
#include "kernels/cuda/gemm/weight_product.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

// Elements between rows as cuBLASLt may be told: a single row has none, so they are those of a copy.
std::int64_t LdOf(const ConstMatrixView& m) { return m.rows == 1 ? PaddedCols(m.cols, m.dtype) : m.ld; }

MatrixView Columns(const MatrixView& m, std::int64_t begin, std::int64_t end) {
  MatrixView out = m;
  out.data = static_cast<char*>(m.data) + begin * DTypeBytes(m.dtype);
  out.cols = end - begin;
  return out;
}
ConstMatrixView Columns(const ConstMatrixView& m, std::int64_t begin, std::int64_t end) {
  ConstMatrixView out = m;
  out.data = static_cast<const char*>(m.data) + begin * DTypeBytes(m.dtype);
  out.cols = end - begin;
  return out;
}

// One call of MultiplyByWeight.
class Multiplication {
 public:
  Multiplication(Stream& stream, LinearState& state, WeightPanels& panels, WeightUse use, DType factor,
                 const WeightView& w, const ConstMatrixView& bias, bool accumulate)
      : stream_(stream),
        blas_(state.blas),
        limits_(state.limits),
        panels_(panels),
        is_transposed_(use == WeightUse::kTransposed),
        factor_(factor),
        n_(w.rows()),
        k_(w.cols()),
        bias_(bias),
        accumulate_(accumulate) {}

  absl::Status Run(const ConstMatrixView& left, const MatrixView& out) {
    const bool copies_left = left.dtype != factor_ || !RowsAreAligned(left);
    const bool finishes = (out.dtype != DType::kF32 && out.dtype != factor_) || !RowsAreAligned(out);
    const std::int64_t chunk = RowsAtATime(
        left.rows, (copies_left ? RowBytes(left.cols, factor_) : 0) + (finishes ? RowBytes(SumCols(), DType::kF32) : 0),
        limits_);
    for (std::int64_t begin = 0; begin < left.rows; begin += chunk) {
      const std::int64_t end = std::min(left.rows, begin + chunk);
      const Way way{end - begin, copies_left, finishes};
      QST_RETURN_IF_ERROR(RunChunk(Rows(left, begin, end), Rows(out, begin, end), way));
    }
    return absl::OkStatus();
  }

 private:
  // How a chunk of rows goes through cuBLASLt.
  struct Way {
    std::int64_t rows = 0;     // of the product; those beyond the chunk's are zeros
    bool copies_left = false;  // to scratch memory, as factor_
    bool finishes = false;     // sums go to scratch memory as f32, and from there to `out`
  };

  // Columns of sums that are in scratch memory at a time.
  std::int64_t SumCols() const { return is_transposed_ ? panels_.rows() : k_; }

  ProductShape Shape(const Way& way, DType out, std::int64_t rows, std::int64_t panel_rows) const {
    ProductShape s;
    s.m = rows;
    s.n = is_transposed_ ? panel_rows : k_;
    s.k = is_transposed_ ? k_ : panel_rows;
    s.factor = factor_;
    s.out = way.finishes ? DType::kF32 : out;
    s.right_is_transposed = is_transposed_;
    s.has_bias = !way.finishes && !bias_.empty();
    return s;
  }

  ProductLayout Layout(const Way& way, const ConstMatrixView& left, const ConstMatrixView& out) const {
    ProductLayout layout;
    layout.left_ld = way.copies_left ? PaddedCols(left.cols, factor_) : LdOf(left);
    layout.right_ld = panels_.ld();
    layout.out_ld = way.finishes ? PaddedCols(SumCols(), DType::kF32) : LdOf(out);
    return layout;
  }

  absl::StatusOr<bool> IsTaken(const Way& way, const ConstMatrixView& left, const ConstMatrixView& out) {
    const std::int64_t last_panel_rows = n_ - (n_ - 1) / panels_.rows() * panels_.rows();
    for (const std::int64_t panel_rows : {panels_.rows(), last_panel_rows}) {
      QST_ASSIGN_OR_RETURN(const bool takes,
                           blas_.Takes(Shape(way, out.dtype, kPinnedTokens, panel_rows),
                                       Shape(way, out.dtype, way.rows, panel_rows), Layout(way, left, out)));
      if (!takes) return false;
    }
    return true;
  }

  absl::Status RunChunk(const ConstMatrixView& left, const MatrixView& out, Way way) {
    QST_ASSIGN_OR_RETURN(const bool is_taken, IsTaken(way, left, out));
    if (!is_taken) {
      QST_ASSIGN_OR_RETURN(way, PaddedWay(left, out));
    }

    const bool copies_bias = !way.finishes && !bias_.empty() && (out.dtype != DType::kF32 || !IsAligned(bias_.data));
    QST_ASSIGN_OR_RETURN(void* const scratch,
                         stream_.Scratch((copies_bias ? CopyBytes(1, n_, out.dtype) : 0) +
                                         (way.copies_left ? CopyBytes(way.rows, left.cols, factor_) : 0) +
                                         (way.finishes ? CopyBytes(way.rows, SumCols(), DType::kF32) : 0)));
    ScratchPieces pieces(scratch);
    ConstMatrixView bias = bias_;
    if (copies_bias) {
      const MatrixView copy = pieces.Matrix(1, n_, out.dtype);
      QST_RETURN_IF_ERROR(CopyRows(stream_, bias_, copy));
      bias = copy;
    }
    ConstMatrixView factors = left;
    if (way.copies_left) {
      const MatrixView copy = pieces.Matrix(way.rows, left.cols, factor_);
      QST_RETURN_IF_ERROR(CopyRows(stream_, left, copy));
      factors = copy;
    }
    const MatrixView sums = way.finishes ? pieces.Matrix(way.rows, SumCols(), DType::kF32) : MatrixView();

    const ProductLayout layout = Layout(way, left, out);
    for (std::int64_t begin = 0; begin < n_; begin += panels_.rows()) {
      const std::int64_t end = std::min(n_, begin + panels_.rows());
      ProductOperands operands;
      QST_ASSIGN_OR_RETURN(operands.right, panels_.Begin(begin, end));
      operands.left = is_transposed_ ? factors.data : Columns(factors, begin, end).data;
      const MatrixView out_cols = is_transposed_ ? Columns(out, begin, end) : out;
      operands.out = way.finishes ? sums.data : out_cols.data;
      operands.accumulate = (accumulate_ && !way.finishes) || (!is_transposed_ && begin > 0);
      const ProductShape pinned = Shape(way, out.dtype, kPinnedTokens, end - begin);
      if (pinned.has_bias) operands.bias = Columns(bias, begin, end).data;
      QST_RETURN_IF_ERROR(blas_.Multiply(pinned, Shape(way, out.dtype, way.rows, end - begin), layout, operands));
      QST_RETURN_IF_ERROR(panels_.End());
      if (way.finishes && is_transposed_) {
        QST_RETURN_IF_ERROR(
            FinishRows(stream_, sums, bias_.empty() ? bias_ : Columns(bias_, begin, end), out_cols, accumulate_));
      }
    }
    if (way.finishes && !is_transposed_) return FinishRows(stream_, sums, ConstMatrixView(), out, accumulate_);
    return absl::OkStatus();
  }

  absl::StatusOr<Way> PaddedWay(const ConstMatrixView& left, const MatrixView& out) {
    for (const std::int64_t rows : {RoundUp(left.rows, limits_.scratch_rows), RoundUp(left.rows, kPinnedTokens)}) {
      const Way way{rows, true, true};
      QST_ASSIGN_OR_RETURN(const bool is_taken, IsTaken(way, left, out));
      if (is_taken) return way;
    }
    return absl::InternalError(absl::StrCat("cuBLASLt's algorithm for ", kPinnedTokens, " tokens takes neither ",
                                            left.rows, " nor more of them: weight [", n_, ", ", k_, "] in ",
                                            DTypeName(factor_)));
  }

  Stream& stream_;
  Blas& blas_;
  const LinearLimits& limits_;
  WeightPanels& panels_;
  const bool is_transposed_;
  const DType factor_;
  const std::int64_t n_;
  const std::int64_t k_;
  const ConstMatrixView bias_;
  const bool accumulate_;
};

}  // namespace

MatrixView ScratchPieces::Matrix(std::int64_t rows, std::int64_t cols, DType dtype) {
  const MatrixView m{next_, dtype, rows, cols, PaddedCols(cols, dtype)};
  next_ += CopyBytes(rows, cols, dtype);
  return m;
}

absl::Status MultiplyByWeight(Stream& stream, WeightUse use, DType factor, const ConstMatrixView& left,
                              const WeightView& w, const ConstMatrixView& bias, const MatrixView& out,
                              bool accumulate) {
  QST_ASSIGN_OR_RETURN(LinearState* const state, LinearState::Of(stream));
  QST_ASSIGN_OR_RETURN(WeightPanels panels, WeightPanels::Make(stream, *state, w, factor));
  return Multiplication(stream, *state, panels, use, factor, w, bias, accumulate).Run(left, out);
}

}  // namespace cuda
}  // namespace qst
