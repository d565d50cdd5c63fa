#include <immintrin.h>

#include "kernels/cpu/vec_math_avx2.h"
#include "kernels/cpu/wire_kernels.h"

namespace qst {
namespace cpu {
namespace avx2 {
namespace {

// The low byte of each lane, n <= 8 of them.
inline void StoreBytes(__m256i lanes, std::int64_t n, std::uint8_t* out) {
  const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                          0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8(lanes, gather);
  const __m128i packed = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  if (n >= 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), packed);
    return;
  }
  alignas(16) std::uint8_t tail[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(tail), packed);
  for (std::int64_t i = 0; i < n; ++i) out[i] = tail[i];
}

inline __m128i LoadBytes(const std::uint8_t* in, std::int64_t n) {
  if (n >= 8) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(in));
  alignas(16) std::uint8_t tail[16] = {};
  for (std::int64_t i = 0; i < n; ++i) tail[i] = in[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(tail));
}

// As F32ToF8E4M3 of dtype_convert.h, for numbers.
inline __m256i RoundToF8E4M3(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
  const __m256i limit = _mm256_set1_epi32(0x43e00000);  // 448
  const __m256i magnitude = _mm256_min_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)), limit);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7ffff));
  const __m256i normal =
      _mm256_sub_epi32(_mm256_srli_epi32(_mm256_add_epi32(magnitude, bias), 20), _mm256_set1_epi32(120 << 3));
  const __m256i subnormal = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(512.0f)));
  const __m256i is_subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude);  // below 2^-6
  return _mm256_or_si256(sign, _mm256_blendv_epi8(normal, subnormal, is_subnormal));
}

inline __m256 WidenF8E4M3(__m256i codes) {
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(0x80)), 24);
  const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
  const __m256i normal = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), _mm256_set1_epi32(120 << 23));
  const __m256i subnormal =
      _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(0.001953125f)));
  const __m256i is_subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
  const __m256i is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
  const __m256i number = _mm256_blendv_epi8(normal, subnormal, is_subnormal);
  const __m256i value = _mm256_blendv_epi8(number, _mm256_set1_epi32(0x7fc00000), is_nan);
  return _mm256_castsi256_ps(_mm256_or_si256(sign, value));
}

}  // namespace

std::uint32_t AbsMaxBits(const float* x, std::int64_t n) {
  __m256i largest = _mm256_setzero_si256();
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256i bits = _mm256_castps_si256(Load(x + j, mask));
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
      });
  alignas(32) std::uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  std::uint32_t result = 0;
  for (const std::uint32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

void EncodeI8Row(const float* x, std::int64_t n, float scale, std::uint8_t* codes) {
  const __m256 divisor = _mm256_set1_ps(scale);
  const __m256 limit = _mm256_set1_ps(127.0f);
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 quotient = _mm256_div_ps(Load(x + j, mask), divisor);
        const __m256 code = _mm256_min_ps(_mm256_max_ps(quotient, _mm256_set1_ps(-127.0f)), limit);
        StoreBytes(_mm256_cvtps_epi32(code), n - j, codes + j);
      });
}

void EncodeF8E4M3Row(const float* x, std::int64_t n, float scale, std::uint8_t* codes) {
  const __m256 divisor = _mm256_set1_ps(scale);
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        StoreBytes(RoundToF8E4M3(_mm256_div_ps(Load(x + j, mask), divisor)), n - j, codes + j);
      });
}

void DecodeI8Row(const std::uint8_t* codes, std::int64_t n, float scale, float* y) {
  const __m256 factor = _mm256_set1_ps(scale);
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 code = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(LoadBytes(codes + j, n - j)));
        _mm256_maskstore_ps(y + j, mask, _mm256_mul_ps(code, factor));
      });
}

void DecodeF8E4M3Row(const std::uint8_t* codes, std::int64_t n, float scale, float* y) {
  const __m256 factor = _mm256_set1_ps(scale);
  ForVectors(
      n, [&](std::int64_t j, __m256i mask) __attribute__((always_inline)) {
        const __m256 code = WidenF8E4M3(_mm256_cvtepu8_epi32(LoadBytes(codes + j, n - j)));
        _mm256_maskstore_ps(y + j, mask, _mm256_mul_ps(code, factor));
      });
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
