// Views of matrices and weights. Views never own memory; whoever made the memory keeps it alive.
#ifndef QST_KERNELS_TENSOR_H_
#define QST_KERNELS_TENSOR_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace qst {

// Row-major [rows, cols]; element (i, j) lies at data[i * ld + j], ld >= cols, in elements.
// A vector is a matrix of one row.
struct MatrixView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t ld = 0;

  template <typename T>
  T* row(std::int64_t i) const {
    return static_cast<T*>(data) + i * ld;
  }
  bool empty() const { return rows == 0 || cols == 0; }
};

struct ConstMatrixView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t ld = 0;

  ConstMatrixView() = default;
  ConstMatrixView(const void* d, DType t, std::int64_t r, std::int64_t c, std::int64_t l)
      : data(d), dtype(t), rows(r), cols(c), ld(l) {}
  ConstMatrixView(const MatrixView& m)  // NOLINT: every mutable view is a const view.
      : data(m.data), dtype(m.dtype), rows(m.rows), cols(m.cols), ld(m.ld) {}

  template <typename T>
  const T* row(std::int64_t i) const {
    return static_cast<const T*>(data) + i * ld;
  }
  bool empty() const { return rows == 0 || cols == 0; }
};

// Contiguous float views.
inline MatrixView Matrix(float* data, std::int64_t rows, std::int64_t cols) {
  return MatrixView{data, DType::kF32, rows, cols, cols};
}
inline ConstMatrixView Matrix(const float* data, std::int64_t rows, std::int64_t cols) {
  return ConstMatrixView(data, DType::kF32, rows, cols, cols);
}
// Rows [begin, end) of a matrix.
inline MatrixView Rows(const MatrixView& m, std::int64_t begin, std::int64_t end) {
  MatrixView out = m;
  out.data = static_cast<char*>(m.data) + begin * m.ld * DTypeBytes(m.dtype);
  out.rows = end - begin;
  return out;
}
inline ConstMatrixView Rows(const ConstMatrixView& m, std::int64_t begin, std::int64_t end) {
  ConstMatrixView out = m;
  out.data = static_cast<const char*>(m.data) + begin * m.ld * DTypeBytes(m.dtype);
  out.rows = end - begin;
  return out;
}

enum class Quant4Type : std::uint8_t { kNF4, kFP4 };

// A [rows, cols] weight in blockwise 4 bit, as bitsandbytes stores it: the row-major elements are one
// flat sequence; element 2i is the high nibble of byte i, element 2i + 1 the low one; block b covers
// elements [b * block_size, (b + 1) * block_size) and may cross rows.
//   value(e) = code_table[nibble(e)] * absmax(e / block_size)
// and, with double quantization (absmax_codes != nullptr),
//   absmax(b) = nested_map[absmax_codes[b]] * nested_absmax[b / nested_block_size] + nested_offset
// with every operation rounded to float32.
struct Quant4View {
  Quant4Type type = Quant4Type::kNF4;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  int block_size = 64;                       // elements
  const std::uint8_t* packed = nullptr;      // [ceil(rows * cols / 2)]
  const float* absmax = nullptr;             // [num_blocks] without double quantization, else null
  const std::uint8_t* absmax_codes = nullptr;  // [num_blocks] with double quantization, else null
  const float* nested_absmax = nullptr;      // [ceil(num_blocks / nested_block_size)]
  const float* nested_map = nullptr;         // [256]
  float nested_offset = 0.0f;
  int nested_block_size = 256;

  std::int64_t num_elems() const { return rows * cols; }
  std::int64_t num_blocks() const { return (num_elems() + block_size - 1) / block_size; }
};

// A frozen or trainable weight [n, k] of y = x W^T: dense (f32, f16, bf16) or 4 bit.
struct WeightView {
  bool is_quantized = false;
  ConstMatrixView dense;  // if !is_quantized
  Quant4View quant4;      // if is_quantized

  std::int64_t rows() const { return is_quantized ? quant4.rows : dense.rows; }
  std::int64_t cols() const { return is_quantized ? quant4.cols : dense.cols; }
  bool empty() const { return rows() == 0 || cols() == 0; }

  static WeightView Dense(const ConstMatrixView& m) {
    WeightView w;
    w.dense = m;
    return w;
  }
  static WeightView Quantized(const Quant4View& q) {
    WeightView w;
    w.is_quantized = true;
    w.quant4 = q;
    return w;
  }
};

}  // namespace qst

#endif  // QST_KERNELS_TENSOR_H_
