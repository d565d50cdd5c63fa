#include "kernels/cpu/gemm/pack_right.h"

#include <algorithm>

#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"

namespace qst {
namespace cpu {
namespace {

const char* ElementAddress(const ConstMatrixView& m, std::int64_t i, std::int64_t j) {
  return static_cast<const char*>(m.data) + (i * m.ld + j) * DTypeBytes(m.dtype);
}

// Whether no block of the weight crosses a row, and blocks are made of whole depth units. Then rows start at
// whole bytes, too.
bool IsRegular(const Quant4View& w) { return w.cols % w.block_size == 0 && w.block_size % kDepthUnit == 0; }

// Rows of the weight are columns of B.
void PackQuantTransposed(const GemmKernels& kernels, const Quant4View& w, std::int64_t k_begin, std::int64_t k_end,
                         std::int64_t row, int rows, float* out) {
  const int nr = kernels.nr;
  if (!IsRegular(w)) {
    for (int j = 0; j < rows; ++j) {
      DequantizeRange(w, (row + j) * w.cols + k_begin, k_end - k_begin, out + j, nr);
    }
    for (int j = rows; j < nr; ++j) {
      for (std::int64_t kk = 0; kk < k_end - k_begin; ++kk) out[kk * nr + j] = 0.0f;
    }
    return;
  }
  const float* table = Quant4Table(w.type);
  const std::int64_t row_bytes = w.cols / 2;
  const std::int64_t blocks_per_row = w.cols / w.block_size;
  const std::uint8_t* packed = w.packed + row * row_bytes;
  float absmax[kMaxNr];
  for (std::int64_t begin = k_begin; begin < k_end;) {
    const std::int64_t block = begin / w.block_size;
    const std::int64_t end = std::min(k_end, (block + 1) * w.block_size);
    for (int j = 0; j < rows; ++j) absmax[j] = BlockAbsmax(w, (row + j) * blocks_per_row + block);
    kernels.unpack4_rows(packed + begin / 2, row_bytes, rows, end - begin, absmax, table, nr,
                         out + (begin - k_begin) * nr);
    begin = end;
  }
}

// Rows of the weight are rows of B.
void PackQuant(const GemmKernels& kernels, const Quant4View& w, std::int64_t k_begin, std::int64_t k_end,
               std::int64_t col, int cols, float* out) {
  const int nr = kernels.nr;
  // nr divides kDepthUnit, and so every block: a panel's part of a row has one absmax.
  if (!IsRegular(w) || cols < nr) {
    for (std::int64_t kk = k_begin; kk < k_end; ++kk) {
      float* to = out + (kk - k_begin) * nr;
      DequantizeRange(w, kk * w.cols + col, cols, to);
      std::fill(to + cols, to + nr, 0.0f);
    }
    return;
  }
  const std::int64_t row_bytes = w.cols / 2;
  const std::int64_t blocks_per_row = w.cols / w.block_size;
  float absmax[kDepthUnit];
  for (std::int64_t begin = k_begin; begin < k_end; begin += kDepthUnit) {
    const std::int64_t depth = std::min(kDepthUnit, k_end - begin);
    for (std::int64_t kk = 0; kk < depth; ++kk) {
      absmax[kk] = BlockAbsmax(w, (begin + kk) * blocks_per_row + col / w.block_size);
    }
    kernels.unpack4_cols(w.packed + begin * row_bytes + col / 2, row_bytes, depth, absmax, Quant4Table(w.type), nr,
                         out + (begin - k_begin) * nr);
  }
}

}  // namespace

void PackRight(const GemmKernels& kernels, const RightOperand& right, std::int64_t k_begin, std::int64_t k_end,
               std::int64_t col, int cols, float* out) {
  if (k_begin == k_end) return;
  const int nr = kernels.nr;
  const WeightView& w = right.weight;
  if (w.is_quantized) {
    if (right.is_transposed) {
      PackQuantTransposed(kernels, w.quant4, k_begin, k_end, col, cols, out);
    } else {
      PackQuant(kernels, w.quant4, k_begin, k_end, col, cols, out);
    }
  } else if (right.is_transposed) {
    kernels.pack_rows(w.dense.dtype, ElementAddress(w.dense, col, k_begin), w.dense.ld, cols, k_end - k_begin, nr,
                      out);
  } else {
    kernels.pack_cols(w.dense.dtype, ElementAddress(w.dense, k_begin, col), w.dense.ld, k_end - k_begin, cols, nr,
                      out);
  }
}

}  // namespace cpu
}  // namespace qst
