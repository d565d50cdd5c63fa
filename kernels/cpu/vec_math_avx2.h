// Vector mathematics on AVX2 and FMA. For *_avx2.cc files only: everything here has internal linkage, so
// that no copy compiled for AVX2 can be linked in where the portable one was meant.
#ifndef QST_KERNELS_CPU_VEC_MATH_AVX2_H_
#define QST_KERNELS_CPU_VEC_MATH_AVX2_H_

#include <immintrin.h>

#include <cstdint>

namespace qst {
namespace cpu {

// Lanes 0 ... n - 1 set, n in 0 ... 8.
static inline __m256i LaneMask(std::int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
}

// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
static inline float SumLanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline float MaxLanes(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// exp(r) for |r| <= ln(2) / 2: 1 + r + r^2 P(r), P minimax for the relative error (3e-9).
static inline __m256 ExpReduced(__m256 r) {
  __m256 p = _mm256_set1_ps(1.3814598649e-3f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.36871687966e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.16683880453e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.66665206317e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.99999934478e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
  return _mm256_add_ps(p, _mm256_set1_ps(1.0f));
}

// x = n ln(2) + r with ln(2) in two parts; n is integral.
static inline __m256 ExpReduce(__m256 x, __m256* n) {
  *n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504089f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(*n, _mm256_set1_ps(0.693359375f), x);
  return _mm256_fnmadd_ps(*n, _mm256_set1_ps(-2.12194440e-4f), r);
}

// 2^n for integral n in -126 ... 127.
static inline __m256 Pow2(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

// exp(x) to about one unit in the last place; subnormal results are right too, too large gives infinity,
// a NaN stays a NaN.
static inline __m256 Exp(__m256 x) {
  // Beyond these bounds results are exactly infinity and 0. A NaN operand comes out of min and max only as
  // the second one.
  const __m256 bounded = _mm256_max_ps(_mm256_set1_ps(-104.0f), _mm256_min_ps(_mm256_set1_ps(89.0f), x));
  __m256 n;
  const __m256 r = ExpReduce(bounded, &n);
  // Two factors, since 2^n itself may lie outside the range of normal numbers.
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(ExpReduced(r), Pow2(half)), Pow2(_mm256_sub_epi32(whole, half)));
}

// exp(x) for x <= 0 (tolerates x up to 88); results below the smallest normal number become 0.
static inline __m256 ExpNonPositive(__m256 x) {
  const __m256 smallest = _mm256_set1_ps(-87.33f);
  __m256 n;
  const __m256 r = ExpReduce(_mm256_max_ps(smallest, x), &n);
  const __m256 value = _mm256_mul_ps(ExpReduced(r), Pow2(_mm256_cvtps_epi32(n)));
  return _mm256_and_ps(value, _mm256_cmp_ps(x, smallest, _CMP_NLT_UQ));
}

// 1 / (1 + exp(-x)).
static inline __m256 Sigmoid(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 negated = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
  return _mm256_div_ps(one, _mm256_add_ps(one, Exp(negated)));
}

// Calls body(j, mask) for j = 0, 8, 16, ...; mask has all lanes set, but in a tail. The same instructions
// compute every element, wherever it lies.
template <typename Body>
static inline __attribute__((always_inline)) void ForVectors(std::int64_t d, const Body& body) {
  const __m256i all = _mm256_set1_epi32(-1);
  std::int64_t j = 0;
  for (; j + 8 <= d; j += 8) body(j, all);
  if (j < d) body(j, LaneMask(d - j));
}

static inline __m256 Load(const float* p, __m256i mask) { return _mm256_maskload_ps(p, mask); }

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_VEC_MATH_AVX2_H_
