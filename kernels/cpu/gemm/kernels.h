// The inner loops of the matrix product, one set per instruction set. Plain pointers and sizes only: the
// files that are compiled for wider registers include nothing else of ours.
//
// A product C[m, n] (+)= A[m, k] B[k, n] goes tile by tile: a few rows of A, read where they lie, times a
// packed panel of B:
//   b[kk * nr + j]   `nr` columns of B, those beyond its last one zero
//
// An element of C is a sum over ascending kk of acc = acc + a * b: fused in AVX2 and AVX-512, which so give the same
// bits, rounded twice in the portable set. How C is cut into tiles and k into blocks changes no bit:
//   multiply             kSumTerms terms are summed by themselves, then added to C: a residual stream of thousands does
//                        not swallow small terms, and the error grows with k / kSumTerms only. Blocks of k begin at
//                        multiples of kSumTerms
//   multiply_transposed  one chain that goes on through C itself, so that a sum over tokens may be cut anywhere: into
//                        micro-batches
#ifndef QST_KERNELS_CPU_GEMM_KERNELS_H_
#define QST_KERNELS_CPU_GEMM_KERNELS_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace qst {
namespace cpu {

struct GemmKernels {
  const char* name;
  int mr;     // rows of a full tile
  int nr;     // columns of a full tile, and of a panel
  int lanes;  // columns of one register; divides nr

  // C tile [rows, cols] = (C if load_c, else 0) + bias (unless null) + the product.
  // 1 <= rows <= mr; cols a multiple of lanes, at most nr; bias [cols].
  // Element (i, kk) of A is a[i * lda + kk] for multiply, a[kk * lda + i] for multiply_transposed.
  void (*multiply)(int rows, int cols, std::int64_t depth, const float* a, std::int64_t lda, const float* b,
                   const float* bias, bool load_c, float* c, std::int64_t ldc);
  void (*multiply_transposed)(int rows, int cols, std::int64_t depth, const float* a, std::int64_t lda,
                              const float* b, const float* bias, bool load_c, float* c, std::int64_t ldc);

  // out[kk * width + i] = source(i, kk), i in [0, rows), zero for i in [rows, width).
  // source(i, j) is element i * ld + j of `source`, of type f32, f16 or bf16, not necessarily aligned.
  void (*pack_rows)(DType dtype, const void* source, std::int64_t ld, int rows, std::int64_t depth, int width,
                    float* out);
  // out[kk * width + i] = source(kk, i), i in [0, cols), zero for i in [cols, width).
  void (*pack_cols)(DType dtype, const void* source, std::int64_t ld, std::int64_t depth, int cols, int width,
                    float* out);

  // The same two for 4-bit codes, where all of a row's `depth` elements share one absmax:
  // out[kk * width + i] = table[code(i, kk)] * absmax[i] for i in [0, rows), zero for i in [rows, width).
  // code(i, j) is the high (j even) or low nibble of byte i * row_bytes + j / 2. depth is a multiple of 32,
  // width of lanes.
  void (*unpack4_rows)(const std::uint8_t* packed, std::int64_t row_bytes, int rows, std::int64_t depth,
                       const float* absmax, const float* table, int width, float* out);
  // out[kk * width + i] = table[code(kk, i)] * absmax[kk], i in [0, width).
  void (*unpack4_cols)(const std::uint8_t* packed, std::int64_t row_bytes, std::int64_t depth, const float* absmax,
                       const float* table, int width, float* out);
};

// Sizes that hold for every set.
inline constexpr int kMaxMr = 16;
inline constexpr int kMaxNr = 64;

// See above.
inline constexpr std::int64_t kSumTerms = 128;

extern const GemmKernels kPortableGemmKernels;
extern const GemmKernels kAvx2GemmKernels;
extern const GemmKernels kAvx512GemmKernels;

// Packing with AVX2, which the AVX-512 set uses too.
namespace avx2 {
void PackRows(DType dtype, const void* source, std::int64_t ld, int rows, std::int64_t depth, int width, float* out);
void PackCols(DType dtype, const void* source, std::int64_t ld, std::int64_t depth, int cols, int width, float* out);
}  // namespace avx2

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_GEMM_KERNELS_H_
