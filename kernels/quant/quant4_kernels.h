// What of 4-bit quantization has a second form for AVX2, below views and options. Includes nothing with inline code, so
// that none is compiled for AVX2 by the file that is.
#ifndef QST_KERNELS_QUANT_QUANT4_KERNELS_H_
#define QST_KERNELS_QUANT_QUANT4_KERNELS_H_

#include <cstdint>

namespace qst {
namespace quant {
namespace avx2 {

// x [n] in blocks of block_size elements (a multiple of 64; the last one may be shorter): absmax [number of blocks] and
// packed [ceil(n / 2)], with the bits that Quant4Builder's portable path gives. The rank of a scaled element, or of its
// magnitude, is the number of `thresholds` below it; code_of_rank [16] is indexed by it.
// Returns the first block that has an element that is not finite, or -1. Blocks from it on are not written.
std::int64_t QuantizeNf4(const float* x, std::int64_t n, std::int64_t block_size, const float thresholds[15],
                         const std::uint8_t* code_of_rank, std::uint8_t* packed, float* absmax);
// The same by magnitude; code_of_rank is indexed by the rank, plus 8 for what is below zero.
std::int64_t QuantizeFp4(const float* x, std::int64_t n, std::int64_t block_size, const float thresholds[7],
                         const std::uint8_t* code_of_rank, std::uint8_t* packed, float* absmax);

// Adds (table[code] * absmax - x)^2 and x^2 of elements 0 to n - 1, which start a block, to error [8] and norm [8]:
// element i to lane i % 8, in order. n is a multiple of 8, block_size one of 64.
void AddSquaredError(const std::uint8_t* packed, const float* absmax, std::int64_t block_size, const float table[16],
                     const float* x, std::int64_t n, double* error, double* norm);

}  // namespace avx2
}  // namespace quant
}  // namespace qst

#endif  // QST_KERNELS_QUANT_QUANT4_KERNELS_H_
