#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/gemm/kernels.h"
#include "kernels/cpu/gemm/multiply_tile.h"

namespace qst {
namespace cpu {
namespace {

// 6 x 16: twelve accumulators, two registers of B, one of A, of sixteen.
struct Simd {
  using Vec = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kMr = 6;
  static Vec Zero() { return _mm256_setzero_ps(); }
  static Vec Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Vec value) { _mm256_storeu_ps(p, value); }
  static Vec Broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec MultiplyAdd(Vec a, Vec b, Vec sum) { return _mm256_fmadd_ps(a, b, sum); }
};
constexpr int kLanes = Simd::kLanes;

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

void Unpack4Rows(const std::uint8_t* packed, std::int64_t row_bytes, int rows, std::int64_t depth, const float* absmax,
                 const float* table, int width, float* out) {
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

const GemmKernels kAvx2GemmKernels = {
    "avx2",         Simd::kMr,      2 * kLanes,  kLanes,     Multiply<Simd, false>, Multiply<Simd, true>,
    avx2::PackRows, avx2::PackCols, Unpack4Rows, Unpack4Cols};

}  // namespace cpu
}  // namespace qst
