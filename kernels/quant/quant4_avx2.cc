// Every operation on a float is the one of the portable path, in the same order, and none is fused: the bits are the
// contract.
#include <immintrin.h>

#include "kernels/quant/quant4_kernels.h"

namespace qst {
namespace quant {
namespace avx2 {
namespace {

// Elements that are packed at a time; every block but the last one holds a whole number of them.
constexpr std::int64_t kStep = 64;
constexpr float kLargestFloat = 3.40282346638528859812e+38f;

__m256i AddBit(__m256i rank, __m256 is_above) {
  // A comparison that holds is -1.
  return _mm256_sub_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(is_above));
}

// The rank among 15 thresholds t in four comparisons: with t[7], then with the middle one of the half, the quarter and
// the eighth that is left.
class Nf4Search {
 public:
  explicit Nf4Search(const float t[15])
      : middle_(_mm256_set1_ps(t[7])),
        lower_half_(_mm256_set1_ps(t[3])),
        upper_half_(_mm256_set1_ps(t[11])),
        quarters_(_mm256_setr_ps(t[1], t[5], t[9], t[13], t[1], t[5], t[9], t[13])),
        eighths_(_mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14])) {}

  __m256i Rank(__m256 x) const {
    const __m256 is_upper = _mm256_cmp_ps(x, middle_, _CMP_GT_OQ);
    __m256i rank = AddBit(_mm256_setzero_si256(), is_upper);
    rank = AddBit(rank, _mm256_cmp_ps(x, _mm256_blendv_ps(lower_half_, upper_half_, is_upper), _CMP_GT_OQ));
    rank = AddBit(rank, _mm256_cmp_ps(x, _mm256_permutevar_ps(quarters_, rank), _CMP_GT_OQ));
    return AddBit(rank, _mm256_cmp_ps(x, _mm256_permutevar8x32_ps(eighths_, rank), _CMP_GT_OQ));
  }

 private:
  __m256 middle_, lower_half_, upper_half_, quarters_, eighths_;
};

// The rank of the magnitude among 7 thresholds in three comparisons, and the sign as bit 3.
class Fp4Search {
 public:
  explicit Fp4Search(const float t[7])
      : middle_(_mm256_set1_ps(t[3])),
        lower_half_(_mm256_set1_ps(t[1])),
        upper_half_(_mm256_set1_ps(t[5])),
        quarters_(_mm256_setr_ps(t[0], t[2], t[4], t[6], t[0], t[2], t[4], t[6])) {}

  __m256i Rank(__m256 x) const {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const __m256 is_upper = _mm256_cmp_ps(magnitude, middle_, _CMP_GT_OQ);
    __m256i rank = AddBit(_mm256_setzero_si256(), is_upper);
    rank = AddBit(rank, _mm256_cmp_ps(magnitude, _mm256_blendv_ps(lower_half_, upper_half_, is_upper), _CMP_GT_OQ));
    rank = AddBit(rank, _mm256_cmp_ps(magnitude, _mm256_permutevar_ps(quarters_, rank), _CMP_GT_OQ));
    // Not the sign bit: a zero is not below zero.
    const __m256i is_negative = _mm256_castps_si256(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
    return _mm256_or_si256(rank, _mm256_and_si256(is_negative, _mm256_set1_epi32(8)));
  }

 private:
  __m256 middle_, lower_half_, upper_half_, quarters_;
};

// Memory of the last elements, if they are fewer than kStep: followed by zeros.
struct Tail {
  alignas(32) float values[kStep];
};

// The next kStep elements at x, of which `left` are there.
const float* Step(const float* x, std::int64_t left, Tail* tail) {
  if (left >= kStep) return x;
  for (std::int64_t i = 0; i < kStep; ++i) tail->values[i] = i < left ? x[i] : 0.0f;
  return tail->values;
}

// The larger of `bits` and the magnitudes' bits in each lane: the bits of magnitudes are ordered as they are, with
// infinities and NaNs above all numbers.
__m256i MaxMagnitude(const float* x, __m256i bits) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  for (int i = 0; i < kStep; i += 8) {
    const __m256i values = _mm256_castps_si256(_mm256_loadu_ps(x + i));
    bits = _mm256_max_epu32(bits, _mm256_and_si256(values, mask));
  }
  return bits;
}

std::uint32_t LargestLane(__m256i lanes) {
  __m128i max = _mm_max_epu32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  max = _mm_max_epu32(max, _mm_shuffle_epi32(max, 0x4e));
  max = _mm_max_epu32(max, _mm_shuffle_epi32(max, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(max));
}

// The codes of 32 elements, two in the low byte of each 16-bit lane. Lanes 0 to 7 hold elements 0 to 15.
template <typename Search>
__m256i Codes32(const Search& search, __m256i code_of_rank, const float* x, __m256 inverse) {
  __m256i ranks[4];
  for (int i = 0; i < 4; ++i) ranks[i] = search.Rank(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
  // Both halves of a register are packed by themselves, so groups of four elements come out as 0 2 4 6 1 3 5 7.
  const __m256i mixed =
      _mm256_packus_epi16(_mm256_packs_epi32(ranks[0], ranks[1]), _mm256_packs_epi32(ranks[2], ranks[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i codes = _mm256_shuffle_epi8(code_of_rank, _mm256_permutevar8x32_epi32(mixed, order));
  return _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110));  // 16 times the first of two, plus the second
}

template <typename Search>
std::int64_t Quantize(const Search& search, const std::uint8_t* code_of_rank, const float* x, std::int64_t n,
                      std::int64_t block_size, std::uint8_t* packed, float* absmax) {
  const __m256i codes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code_of_rank)));
  Tail tail;
  for (std::int64_t begin = 0; begin < n; begin += block_size, ++absmax) {
    const std::int64_t end = n - begin < block_size ? n : begin + block_size;
    __m256i lanes = _mm256_setzero_si256();
    for (std::int64_t i = begin; i < end; i += kStep) lanes = MaxMagnitude(Step(x + i, end - i, &tail), lanes);
    const std::uint32_t bits = LargestLane(lanes);
    if (bits >= 0x7f800000u) return begin / block_size;
    const float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits))));
    *absmax = max;
    const float inverse = 1.0f / max;
    const __m256 factor = _mm256_set1_ps(inverse < kLargestFloat ? inverse : kLargestFloat);
    for (std::int64_t i = begin; i < end; i += kStep) {
      const float* const step = Step(x + i, end - i, &tail);
      const __m256i bytes = _mm256_permute4x64_epi64(
          _mm256_packus_epi16(Codes32(search, codes, step, factor), Codes32(search, codes, step + 32, factor)), 0xd8);
      if (end - i >= kStep) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + i / 2), bytes);
        continue;
      }
      alignas(32) std::uint8_t last[kStep / 2];
      _mm256_store_si256(reinterpret_cast<__m256i*>(last), bytes);
      for (std::int64_t byte = 0; byte < (end - i + 1) / 2; ++byte) packed[i / 2 + byte] = last[byte];
    }
  }
  return -1;
}

// Adds the squares of four lanes.
__m256d AddSquare(__m256d sum, __m256d x) { return _mm256_add_pd(sum, _mm256_mul_pd(x, x)); }

}  // namespace

std::int64_t QuantizeNf4(const float* x, std::int64_t n, std::int64_t block_size, const float thresholds[15],
                         const std::uint8_t* code_of_rank, std::uint8_t* packed, float* absmax) {
  return Quantize(Nf4Search(thresholds), code_of_rank, x, n, block_size, packed, absmax);
}

std::int64_t QuantizeFp4(const float* x, std::int64_t n, std::int64_t block_size, const float thresholds[7],
                         const std::uint8_t* code_of_rank, std::uint8_t* packed, float* absmax) {
  return Quantize(Fp4Search(thresholds), code_of_rank, x, n, block_size, packed, absmax);
}

void AddSquaredError(const std::uint8_t* packed, const float* absmax, std::int64_t block_size, const float table[16],
                     const float* x, std::int64_t n, double* error, double* norm) {
  const __m256 lower_table = _mm256_loadu_ps(table);
  const __m256 upper_table = _mm256_loadu_ps(table + 8);
  const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);  // of an element's code in four bytes
  __m256d error_low = _mm256_loadu_pd(error);
  __m256d error_high = _mm256_loadu_pd(error + 4);
  __m256d norm_low = _mm256_loadu_pd(norm);
  __m256d norm_high = _mm256_loadu_pd(norm + 4);
  for (std::int64_t begin = 0; begin < n; begin += block_size, ++absmax) {
    const std::int64_t end = n - begin < block_size ? n : begin + block_size;
    const __m256 scale = _mm256_set1_ps(*absmax);
    for (std::int64_t i = begin; i < end; i += 8) {
      int bytes;
      __builtin_memcpy(&bytes, packed + i / 2, sizeof(bytes));
      const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(bytes), shifts);  // in the low four bits
      const __m256 is_upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
      const __m256 of_table = _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower_table, codes),
                                               _mm256_permutevar8x32_ps(upper_table, codes), is_upper);
      const __m256 restored = _mm256_mul_ps(of_table, scale);
      const __m256d x_low = _mm256_cvtps_pd(_mm_loadu_ps(x + i));
      const __m256d x_high = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
      error_low = AddSquare(error_low, _mm256_sub_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(restored)), x_low));
      error_high = AddSquare(error_high, _mm256_sub_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(restored, 1)), x_high));
      norm_low = AddSquare(norm_low, x_low);
      norm_high = AddSquare(norm_high, x_high);
    }
  }
  _mm256_storeu_pd(error, error_low);
  _mm256_storeu_pd(error + 4, error_high);
  _mm256_storeu_pd(norm, norm_low);
  _mm256_storeu_pd(norm + 4, norm_high);
}

}  // namespace avx2
}  // namespace quant
}  // namespace qst
