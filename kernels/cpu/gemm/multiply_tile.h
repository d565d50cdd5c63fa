// The inner loop of the matrix product for any instruction set. For kernels_*.cc only, each of which names its
// registers in a struct of its own:
//
//   struct Simd {
//     using Vec = ...;                                      // a register of kLanes floats
//     static constexpr int kLanes, kMr;
//     static Vec Zero();
//     static Vec Load(const float*);                        // from any address
//     static void Store(float*, Vec);
//     static Vec Broadcast(const float*);
//     static Vec Add(Vec, Vec);
//     static Vec MultiplyAdd(Vec a, Vec b, Vec sum);        // sum + a * b
//   };
//
// The struct has internal linkage, and so has all that is made of it here: nothing compiled for wide registers is ever
// linked into portable code.
#ifndef QST_KERNELS_CPU_GEMM_MULTIPLY_TILE_H_
#define QST_KERNELS_CPU_GEMM_MULTIPLY_TILE_H_

#include <cstdint>
#include <utility>

#include "kernels/cpu/gemm/kernels.h"

namespace qst {
namespace cpu {

// `depth` terms of a tile of kRows x kVectors registers of C, from a panel of two registers (one is enough for a narrow
// last panel). kIsChain: sums begin with what C and bias hold; else those are added to them at the end.
template <class Simd, int kRows, int kVectors, bool kIsTransposed, bool kIsChain>
static void AddTerms(std::int64_t depth, const float* a, std::int64_t lda, const float* b, const float* bias,
                     bool load_c, float* c, std::int64_t ldc) {
  constexpr int kLanes = Simd::kLanes;
  typename Simd::Vec acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = kIsChain && load_c ? Simd::Load(c + i * ldc + v * kLanes) : Simd::Zero();
      if (kIsChain && bias != nullptr) acc[i][v] = Simd::Add(acc[i][v], Simd::Load(bias + v * kLanes));
    }
  }
  // One pointer for every four rows: few enough for registers.
  const float* row[(kRows + 3) / 4];
#pragma GCC unroll 4
  for (int g = 0; g < (kRows + 3) / 4; ++g) row[g] = a + (kIsTransposed ? 4 * g : 4 * g * lda);
#pragma GCC unroll 4
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    typename Simd::Vec right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = Simd::Load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const typename Simd::Vec left = Simd::Broadcast(&row[i / 4][kIsTransposed ? i % 4 : i % 4 * lda]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Simd::MultiplyAdd(left, right[v], acc[i][v]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < (kRows + 3) / 4; ++g) row[g] += kIsTransposed ? lda : 1;
    b += 2 * kLanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* const to = c + i * ldc + v * kLanes;
      if (!kIsChain && bias != nullptr) acc[i][v] = Simd::Add(acc[i][v], Simd::Load(bias + v * kLanes));
      if (!kIsChain && load_c) acc[i][v] = Simd::Add(Simd::Load(to), acc[i][v]);
      Simd::Store(to, acc[i][v]);
    }
  }
}

template <class Simd, int kRows, int kVectors, bool kIsTransposed>
static void MultiplyTile(std::int64_t depth, const float* a, std::int64_t lda, const float* b, const float* bias,
                         bool load_c, float* c, std::int64_t ldc) {
  if (kIsTransposed) return AddTerms<Simd, kRows, kVectors, true, true>(depth, a, lda, b, bias, load_c, c, ldc);
  std::int64_t kk = 0;
  do {
    const std::int64_t terms = depth - kk < kSumTerms ? depth - kk : kSumTerms;
    AddTerms<Simd, kRows, kVectors, false, false>(terms, a + kk, lda, b + kk * 2 * Simd::kLanes,
                                                  kk == 0 ? bias : nullptr, load_c || kk > 0, c, ldc);
    kk += terms;
  } while (kk < depth);
}

using TileFn = void (*)(std::int64_t, const float*, std::int64_t, const float*, const float*, bool, float*,
                        std::int64_t);

template <class Simd, bool kIsTransposed, int... kRow>
static void MultiplyRows(std::integer_sequence<int, kRow...>, int rows, int vectors, std::int64_t depth, const float* a,
                         std::int64_t lda, const float* b, const float* bias, bool load_c, float* c, std::int64_t ldc) {
  static constexpr TileFn kTiles[][2] = {
      {MultiplyTile<Simd, kRow + 1, 1, kIsTransposed>, MultiplyTile<Simd, kRow + 1, 2, kIsTransposed>}...};
  kTiles[rows - 1][vectors - 1](depth, a, lda, b, bias, load_c, c, ldc);
}

// GemmKernels::multiply, or multiply_transposed.
template <class Simd, bool kIsTransposed>
static void Multiply(int rows, int cols, std::int64_t depth, const float* a, std::int64_t lda, const float* b,
                     const float* bias, bool load_c, float* c, std::int64_t ldc) {
  MultiplyRows<Simd, kIsTransposed>(std::make_integer_sequence<int, Simd::kMr>(), rows, cols / Simd::kLanes, depth, a,
                                    lda, b, bias, load_c, c, ldc);
}

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_GEMM_MULTIPLY_TILE_H_
