// Kernels of rows with a scale each, below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_WIRE_KERNELS_H_
#define QST_KERNELS_CPU_WIRE_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

// One row of n values, in two instruction sets with the same bits. scale > 0.
#define QST_WIRE_ROW_KERNELS                                                              \
  /* The largest magnitude as float32 bits: a NaN counts as larger than an infinity. */   \
  std::uint32_t AbsMaxBits(const float* x, std::int64_t n);                               \
  void EncodeI8Row(const float* x, std::int64_t n, float scale, std::uint8_t* codes);     \
  void EncodeF8E4M3Row(const float* x, std::int64_t n, float scale, std::uint8_t* codes); \
  void DecodeI8Row(const std::uint8_t* codes, std::int64_t n, float scale, float* y);     \
  void DecodeF8E4M3Row(const std::uint8_t* codes, std::int64_t n, float scale, float* y);

namespace portable {
QST_WIRE_ROW_KERNELS
}  // namespace portable
namespace avx2 {
QST_WIRE_ROW_KERNELS
}  // namespace avx2
#undef QST_WIRE_ROW_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_WIRE_KERNELS_H_
