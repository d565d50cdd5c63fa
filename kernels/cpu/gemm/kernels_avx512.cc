// Twice the width of the AVX2 set, and the same bits.
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/gemm/kernels.h"

namespace qst {
namespace cpu {
namespace {

// 12 x 32: 24 accumulators, two registers of B, one of A, of 32.
constexpr int kMr = 12;
constexpr int kLanes = 16;
constexpr int kNr = 2 * kLanes;

// kVectors of the panel's two registers are computed: one is enough for a narrow last panel. `is_chain`: sums begin with
// what C and bias hold; else those are added to them at the end.
template <int kRows, int kVectors, bool kTransposed>
void AddTerms(std::int64_t depth, const float* a, std::int64_t lda, const float* b, const float* bias, bool load_c,
              bool is_chain, float* c, std::int64_t ldc) {
  __m512 acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = is_chain && load_c ? _mm512_loadu_ps(c + i * ldc + v * kLanes) : _mm512_setzero_ps();
      if (is_chain && bias != nullptr) acc[i][v] = _mm512_add_ps(acc[i][v], _mm512_loadu_ps(bias + v * kLanes));
    }
  }
  // One pointer for every four rows: few enough for registers.
  const float* row[(kRows + 3) / 4];
#pragma GCC unroll 4
  for (int g = 0; g < (kRows + 3) / 4; ++g) row[g] = a + (kTransposed ? 4 * g : 4 * g * lda);
#pragma GCC unroll 4
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    __m512 right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = _mm512_loadu_ps(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const __m512 left = _mm512_set1_ps(row[i / 4][kTransposed ? i % 4 : i % 4 * lda]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[i][v] = _mm512_fmadd_ps(left, right[v], acc[i][v]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < (kRows + 3) / 4; ++g) row[g] += kTransposed ? lda : 1;
    b += kNr;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* const to = c + i * ldc + v * kLanes;
      if (!is_chain && bias != nullptr) acc[i][v] = _mm512_add_ps(acc[i][v], _mm512_loadu_ps(bias + v * kLanes));
      if (!is_chain && load_c) acc[i][v] = _mm512_add_ps(_mm512_loadu_ps(to), acc[i][v]);
      _mm512_storeu_ps(to, acc[i][v]);
    }
  }
}

template <int kRows, int kVectors, bool kTransposed>
void MultiplyTile(std::int64_t depth, const float* a, std::int64_t lda, const float* b, const float* bias, bool load_c,
                  float* c, std::int64_t ldc) {
  if (kTransposed) return AddTerms<kRows, kVectors, true>(depth, a, lda, b, bias, load_c, /*is_chain=*/true, c, ldc);
  std::int64_t kk = 0;
  do {
    const std::int64_t terms = depth - kk < kSumTerms ? depth - kk : kSumTerms;
    AddTerms<kRows, kVectors, false>(terms, a + kk, lda, b + kk * kNr, kk == 0 ? bias : nullptr, load_c || kk > 0,
                                     /*is_chain=*/false, c, ldc);
    kk += terms;
  } while (kk < depth);
}

using TileFn = void (*)(std::int64_t, const float*, std::int64_t, const float*, const float*, bool, float*,
                        std::int64_t);

template <bool kTransposed>
void Multiply(int rows, int cols, std::int64_t depth, const float* a, std::int64_t lda, const float* b,
              const float* bias, bool load_c, float* c, std::int64_t ldc) {
  static constexpr TileFn kTiles[kMr][2] = {
      {MultiplyTile<1, 1, kTransposed>, MultiplyTile<1, 2, kTransposed>},
      {MultiplyTile<2, 1, kTransposed>, MultiplyTile<2, 2, kTransposed>},
      {MultiplyTile<3, 1, kTransposed>, MultiplyTile<3, 2, kTransposed>},
      {MultiplyTile<4, 1, kTransposed>, MultiplyTile<4, 2, kTransposed>},
      {MultiplyTile<5, 1, kTransposed>, MultiplyTile<5, 2, kTransposed>},
      {MultiplyTile<6, 1, kTransposed>, MultiplyTile<6, 2, kTransposed>},
      {MultiplyTile<7, 1, kTransposed>, MultiplyTile<7, 2, kTransposed>},
      {MultiplyTile<8, 1, kTransposed>, MultiplyTile<8, 2, kTransposed>},
      {MultiplyTile<9, 1, kTransposed>, MultiplyTile<9, 2, kTransposed>},
      {MultiplyTile<10, 1, kTransposed>, MultiplyTile<10, 2, kTransposed>},
      {MultiplyTile<11, 1, kTransposed>, MultiplyTile<11, 2, kTransposed>},
      {MultiplyTile<12, 1, kTransposed>, MultiplyTile<12, 2, kTransposed>}};
  kTiles[rows - 1][cols / kLanes - 1](depth, a, lda, b, bias, load_c, c, ldc);
}

// One 32-bit word (eight elements of k) of each of sixteen rows. The permutation looks at the lowest four
// bits of its index: a whole table lookup.
void StoreEight(__m512i codes, __m512 table, __m512 absmax, int width, float* out) {
  const auto lookup = [&](__m512i index) { return _mm512_mul_ps(_mm512_permutexvar_ps(index, table), absmax); };
  _mm512_storeu_ps(out, lookup(_mm512_srli_epi32(codes, 4)));
  _mm512_storeu_ps(out + width, lookup(codes));
  _mm512_storeu_ps(out + 2 * width, lookup(_mm512_srli_epi32(codes, 12)));
  _mm512_storeu_ps(out + 3 * width, lookup(_mm512_srli_epi32(codes, 8)));
  _mm512_storeu_ps(out + 4 * width, lookup(_mm512_srli_epi32(codes, 20)));
  _mm512_storeu_ps(out + 5 * width, lookup(_mm512_srli_epi32(codes, 16)));
  _mm512_storeu_ps(out + 6 * width, lookup(_mm512_srli_epi32(codes, 28)));
  _mm512_storeu_ps(out + 7 * width, lookup(_mm512_srli_epi32(codes, 24)));
}

__m512i FourQuarters(const std::uint8_t* const* row, std::int64_t at) {
  const auto load = [at](const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at)); };
  __m512i quarters = _mm512_castsi128_si512(load(row[0]));
  quarters = _mm512_inserti32x4(quarters, load(row[4]), 1);
  quarters = _mm512_inserti32x4(quarters, load(row[8]), 2);
  return _mm512_inserti32x4(quarters, load(row[12]), 3);
}

void Unpack4Rows(const std::uint8_t* packed, std::int64_t row_bytes, int rows, std::int64_t depth,
                 const float* absmax, const float* table, int width, float* out) {
  const __m512 values = _mm512_loadu_ps(table);
  for (int i = 0; i < width; i += kLanes) {
    // Rows beyond the last one read that one again; their scale is zero.
    const std::uint8_t* row[kLanes];
    alignas(64) float scale_of[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const int r = i + j < rows ? i + j : rows - 1;
      row[j] = packed + r * row_bytes;
      scale_of[j] = i + j < rows ? absmax[r] : 0.0f;
    }
    const __m512 scale = _mm512_load_ps(scale_of);
    for (std::int64_t kk = 0; kk < depth; kk += 32) {
      // 16 bytes of each row; 4 x 4 words are transposed in each quarter: rows 0-3, 4-7, 8-11 and 12-15.
      const std::int64_t at = kk / 2;
      const __m512i r0 = FourQuarters(row, at);
      const __m512i r1 = FourQuarters(row + 1, at);
      const __m512i r2 = FourQuarters(row + 2, at);
      const __m512i r3 = FourQuarters(row + 3, at);
      const __m512i a0 = _mm512_unpacklo_epi32(r0, r1);
      const __m512i a1 = _mm512_unpackhi_epi32(r0, r1);
      const __m512i a2 = _mm512_unpacklo_epi32(r2, r3);
      const __m512i a3 = _mm512_unpackhi_epi32(r2, r3);
      float* to = out + kk * width + i;
      StoreEight(_mm512_unpacklo_epi64(a0, a2), values, scale, width, to);
      StoreEight(_mm512_unpackhi_epi64(a0, a2), values, scale, width, to + 8 * width);
      StoreEight(_mm512_unpacklo_epi64(a1, a3), values, scale, width, to + 16 * width);
      StoreEight(_mm512_unpackhi_epi64(a1, a3), values, scale, width, to + 24 * width);
    }
  }
}

void Unpack4Cols(const std::uint8_t* packed, std::int64_t row_bytes, std::int64_t depth, const float* absmax,
                 const float* table, int width, float* out) {
  const __m512 values = _mm512_loadu_ps(table);
  // Each lane holds the eight bytes of sixteen elements, half of them; its own nibble moves to the lowest bits.
  const __m512i shift = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    const std::uint8_t* row = packed + kk * row_bytes;
    const __m512 scale = _mm512_set1_ps(absmax[kk]);
    float* to = out + kk * width;
    for (int i = 0; i < width; i += kLanes) {
      int words[2];
      __builtin_memcpy(words, row + i / 2, sizeof(words));
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set1_epi32(words[0])),
                                              _mm256_set1_epi32(words[1]), 1);
      const __m512i codes = _mm512_srlv_epi32(both, shift);
      _mm512_storeu_ps(to + i, _mm512_mul_ps(_mm512_permutexvar_ps(codes, values), scale));
    }
  }
}

}  // namespace

const GemmKernels kAvx512GemmKernels = {"avx512",           kMr,
                                      kNr,              kLanes,
                                      Multiply<false>,  Multiply<true>,
                                      avx2::PackRows,   avx2::PackCols,
                                      Unpack4Rows,      Unpack4Cols};

}  // namespace cpu
}  // namespace qst
