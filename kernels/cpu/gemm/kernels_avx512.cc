// Twice the width of the AVX2 set, and the same bits.
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/gemm/kernels.h"
#include "kernels/cpu/gemm/multiply_tile.h"

namespace qst {
namespace cpu {
namespace {

// 12 x 32: 24 accumulators, two registers of B, one of A, of 32.
struct Simd {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kMr = 12;
  static Vec Zero() { return _mm512_setzero_ps(); }
  static Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Vec value) { _mm512_storeu_ps(p, value); }
  static Vec Broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec MultiplyAdd(Vec a, Vec b, Vec sum) { return _mm512_fmadd_ps(a, b, sum); }
};
constexpr int kLanes = Simd::kLanes;

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

void Unpack4Rows(const std::uint8_t* packed, std::int64_t row_bytes, int rows, std::int64_t depth, const float* absmax,
                 const float* table, int width, float* out) {
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
      const __m512i both =
          _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set1_epi32(words[0])), _mm256_set1_epi32(words[1]), 1);
      const __m512i codes = _mm512_srlv_epi32(both, shift);
      _mm512_storeu_ps(to + i, _mm512_mul_ps(_mm512_permutexvar_ps(codes, values), scale));
    }
  }
}

}  // namespace

const GemmKernels kAvx512GemmKernels = {
    "avx512",       Simd::kMr,      2 * kLanes,  kLanes,     Multiply<Simd, false>, Multiply<Simd, true>,
    avx2::PackRows, avx2::PackCols, Unpack4Rows, Unpack4Cols};

}  // namespace cpu
}  // namespace qst
