#include <immintrin.h>

#include "kernels/cpu/convert_kernels.h"

namespace qst {
namespace cpu {
namespace avx2 {
namespace {

__m256 WidenBF16(__m128i values) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16)); }

// Eight values rounded to nearest even; NaNs keep their top bits and become quiet.
__m128i NarrowToBF16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i is_odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, is_nan);
  const __m256i packed = _mm256_packus_epi32(chosen, chosen);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

// Copies the last n < 8 values through a full-width buffer.
struct Tail16 {
  alignas(16) std::uint16_t values[8] = {};
};
struct Tail32 {
  alignas(32) float values[8] = {};
};

}  // namespace

void BF16ToF32Row(const std::uint16_t* in, std::int64_t n, float* out) {
  std::int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    _mm256_storeu_ps(out + j, WidenBF16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + j))));
  }
  if (j == n) return;
  Tail16 from;
  Tail32 to;
  for (std::int64_t i = j; i < n; ++i) from.values[i - j] = in[i];
  _mm256_store_ps(to.values, WidenBF16(_mm_load_si128(reinterpret_cast<const __m128i*>(from.values))));
  for (std::int64_t i = j; i < n; ++i) out[i] = to.values[i - j];
}

void F16ToF32Row(const std::uint16_t* in, std::int64_t n, float* out) {
  std::int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    _mm256_storeu_ps(out + j, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + j))));
  }
  if (j == n) return;
  Tail16 from;
  Tail32 to;
  for (std::int64_t i = j; i < n; ++i) from.values[i - j] = in[i];
  _mm256_store_ps(to.values, _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from.values))));
  for (std::int64_t i = j; i < n; ++i) out[i] = to.values[i - j];
}

void F32ToBF16Row(const float* in, std::int64_t n, std::uint16_t* out) {
  std::int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), NarrowToBF16(_mm256_loadu_ps(in + j)));
  }
  if (j == n) return;
  Tail32 from;
  Tail16 to;
  for (std::int64_t i = j; i < n; ++i) from.values[i - j] = in[i];
  _mm_store_si128(reinterpret_cast<__m128i*>(to.values), NarrowToBF16(_mm256_load_ps(from.values)));
  for (std::int64_t i = j; i < n; ++i) out[i] = to.values[i - j];
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
