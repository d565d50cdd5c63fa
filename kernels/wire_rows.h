// Rows of hidden states as they travel from a backbone stage to the side network: types and layout.
//
//   bf16, f32    [T, d] row-major
//   i8, f8_e4m3  scales [T] f32, zeros up to a multiple of 16 bytes, codes [T, d] row-major, one byte each
//                value(t, j) = code(t, j) * scale[t], in float32, then rounded to the type that is asked for
//
// The scale of a row is absmax / 127 for i8 and absmax / 448 for f8_e4m3 (the largest codes), a code the rounded
// value / scale, ties to even. A row of zeros has scale 0, and so has one so small that the scale is rounded to 0. A
// row with a NaN or an infinity has a NaN as its scale: all of it decodes to NaNs, so that the failure stays visible.
// Memory begins at a multiple of 16 bytes.
#ifndef QST_KERNELS_WIRE_ROWS_H_
#define QST_KERNELS_WIRE_ROWS_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace qst {

constexpr std::int64_t kWireAlignment = 16;  // bytes

constexpr bool IsWireDtype(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF32 || dtype == DType::kI8 || dtype == DType::kF8E4M3;
}
constexpr bool HasRowScales(DType wire) { return wire == DType::kI8 || wire == DType::kF8E4M3; }

// Where the codes of T rows begin.
constexpr std::int64_t WireCodesOffset(std::int64_t rows) {
  return (rows * 4 + kWireAlignment - 1) / kWireAlignment * kWireAlignment;
}

// Bytes of [rows, cols] in a wire type.
constexpr std::int64_t WireBytes(DType wire, std::int64_t rows, std::int64_t cols) {
  return (HasRowScales(wire) ? WireCodesOffset(rows) : 0) + rows * cols * DTypeBytes(wire);
}

}  // namespace qst

#endif  // QST_KERNELS_WIRE_ROWS_H_
