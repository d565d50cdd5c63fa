#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/gemm/kernels.h"

namespace qst {
namespace cpu {
namespace {

// 6 x 16: twelve accumulators, two registers of B, one of A, of sixteen.
constexpr int kMr = 6;
constexpr int kLanes = 8;
constexpr int kNr = 2 * kLanes;

// kVectors of the panel's two registers are computed: one is enough for a narrow last panel. `is_chain`: sums begin with
// what C and bias hold; else those are added to them at the end.
template <int kRows, int kVectors, bool kTransposed>
void AddTerms(std::int64_t depth, const float* a, std::int64_t lda, const float* b, const float* bias, bool load_c,
              bool is_chain, float* c, std::int64_t ldc) {
  __m256 acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = is_chain && load_c ? _mm256_loadu_ps(c + i * ldc + v * kLanes) : _mm256_setzero_ps();
      if (is_chain && bias != nullptr) acc[i][v] = _mm256_add_ps(acc[i][v], _mm256_loadu_ps(bias + v * kLanes));
    }
  }
  // One pointer for every four rows: few enough for registers.
  const float* row[(kRows + 3) / 4];
#pragma GCC unroll 4
  for (int g = 0; g < (kRows + 3) / 4; ++g) row[g] = a + (kTransposed ? 4 * g : 4 * g * lda);
#pragma GCC unroll 4
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    __m256 right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = _mm256_loadu_ps(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const __m256 left = _mm256_broadcast_ss(&row[i / 4][kTransposed ? i % 4 : i % 4 * lda]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[i][v] = _mm256_fmadd_ps(left, right[v], acc[i][v]);
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
      if (!is_chain && bias != nullptr) acc[i][v] = _mm256_add_ps(acc[i][v], _mm256_loadu_ps(bias + v * kLanes));
      if (!is_chain && load_c) acc[i][v] = _mm256_add_ps(_mm256_loadu_ps(to), acc[i][v]);
      _mm256_storeu_ps(to, acc[i][v]);
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
      {MultiplyTile<6, 1, kTransposed>, MultiplyTile<6, 2, kTransposed>}};
  kTiles[rows - 1][cols / kLanes - 1](depth, a, lda, b, bias, load_c, c, ldc);
}

// table[code] for codes in bits [kShift, kShift + 4) of each lane. The permutation looks at three bits, so
// the fourth one, moved to the sign, chooses between the two halves of the table.
template <int kShift>
__m256 Lookup(__m256i codes, __m256 low_half, __m256 high_half) {
  const __m256i index = kShift == 0 ? codes : _mm256_srli_epi32(codes, kShift);
  const __m256 fourth_bit = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - kShift));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low_half, index), _mm256_permutevar8x32_ps(high_half, index),
                          fourth_bit);
}

// One 32-bit word (eight elements of k) of each of eight rows.
void StoreEight(__m256i codes, __m256 low_half, __m256 high_half, __m256 absmax, int width, float* out) {
  _mm256_storeu_ps(out, _mm256_mul_ps(Lookup<4>(codes, low_half, high_half), absmax));
  _mm256_storeu_ps(out + width, _mm256_mul_ps(Lookup<0>(codes, low_half, high_half), absmax));
  _mm256_storeu_ps(out + 2 * width, _mm256_mul_ps(Lookup<12>(codes, low_half, high_half), absmax));
  _mm256_storeu_ps(out + 3 * width, _mm256_mul_ps(Lookup<8>(codes, low_half, high_half), absmax));
  _mm256_storeu_ps(out + 4 * width, _mm256_mul_ps(Lookup<20>(codes, low_half, high_half), absmax));
  _mm256_storeu_ps(out + 5 * width, _mm256_mul_ps(Lookup<16>(codes, low_half, high_half), absmax));
  _mm256_storeu_ps(out + 6 * width, _mm256_mul_ps(Lookup<28>(codes, low_half, high_half), absmax));
  _mm256_storeu_ps(out + 7 * width, _mm256_mul_ps(Lookup<24>(codes, low_half, high_half), absmax));
}

__m256i TwoHalves(const std::uint8_t* low, const std::uint8_t* high) {
  const __m256i first = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
  return _mm256_inserti128_si256(first, _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}

void Unpack4Rows(const std::uint8_t* packed, std::int64_t row_bytes, int rows, std::int64_t depth,
                 const float* absmax, const float* table, int width, float* out) {
  const __m256 low_half = _mm256_loadu_ps(table);
  const __m256 high_half = _mm256_loadu_ps(table + 8);
  for (int i = 0; i < width; i += kLanes) {
    // Rows beyond the last one read that one again; their scale is zero.
    const std::uint8_t* row[kLanes];
    alignas(32) float scale_of[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const int r = i + j < rows ? i + j : rows - 1;
      row[j] = packed + r * row_bytes;
      scale_of[j] = i + j < rows ? absmax[r] : 0.0f;
    }
    const __m256 scale = _mm256_load_ps(scale_of);
    for (std::int64_t kk = 0; kk < depth; kk += 32) {
      // 16 bytes of each row; 4 x 4 words are transposed in each half, rows 0-3 and rows 4-7.
      const std::int64_t at = kk / 2;
      const __m256i r0 = TwoHalves(row[0] + at, row[4] + at);
      const __m256i r1 = TwoHalves(row[1] + at, row[5] + at);
      const __m256i r2 = TwoHalves(row[2] + at, row[6] + at);
      const __m256i r3 = TwoHalves(row[3] + at, row[7] + at);
      const __m256i a0 = _mm256_unpacklo_epi32(r0, r1);
      const __m256i a1 = _mm256_unpackhi_epi32(r0, r1);
      const __m256i a2 = _mm256_unpacklo_epi32(r2, r3);
      const __m256i a3 = _mm256_unpackhi_epi32(r2, r3);
      float* to = out + kk * width + i;
      StoreEight(_mm256_unpacklo_epi64(a0, a2), low_half, high_half, scale, width, to);
      StoreEight(_mm256_unpackhi_epi64(a0, a2), low_half, high_half, scale, width, to + 8 * width);
      StoreEight(_mm256_unpacklo_epi64(a1, a3), low_half, high_half, scale, width, to + 16 * width);
      StoreEight(_mm256_unpackhi_epi64(a1, a3), low_half, high_half, scale, width, to + 24 * width);
    }
  }
}

void Unpack4Cols(const std::uint8_t* packed, std::int64_t row_bytes, std::int64_t depth, const float* absmax,
                 const float* table, int width, float* out) {
  const __m256 low_half = _mm256_loadu_ps(table);
  const __m256 high_half = _mm256_loadu_ps(table + 8);
  // Lane j holds the four bytes of eight elements; its own nibble moves to the lowest bits.
  const __m256i shift = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    const std::uint8_t* row = packed + kk * row_bytes;
    const __m256 scale = _mm256_set1_ps(absmax[kk]);
    float* to = out + kk * width;
    for (int i = 0; i < width; i += kLanes) {
      int word;
      __builtin_memcpy(&word, row + i / 2, sizeof(word));
      const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(word), shift);
      _mm256_storeu_ps(to + i, _mm256_mul_ps(Lookup<0>(codes, low_half, high_half), scale));
    }
  }
}

}  // namespace

const GemmKernels kAvx2GemmKernels = {"avx2",           kMr,
                                      kNr,              kLanes,
                                      Multiply<false>,  Multiply<true>,
                                      avx2::PackRows,   avx2::PackCols,
                                      Unpack4Rows,      Unpack4Cols};

}  // namespace cpu
}  // namespace qst
