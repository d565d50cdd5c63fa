// Packing of dense panels: rows of 8, 4 and 2 are transposed in registers, 8 or 4 elements of k at a time.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/gemm/kernels.h"

namespace qst {
namespace cpu {
namespace {

// Loads of 8, 4 and 1 elements as float32, from any address.
struct F32Source {
  static constexpr int kBytes = 4;
  static __m256 Load8(const char* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static __m128 Load4(const char* p) { return _mm_loadu_ps(reinterpret_cast<const float*>(p)); }
  static float Load1(const char* p) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
};

struct BF16Source {
  static constexpr int kBytes = 2;
  static __m256 Load8(const char* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static __m128 Load4(const char* p) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
  }
  static float Load1(const char* p) {
    std::uint16_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(static_cast<std::uint32_t>(bits) << 16))));
  }
};

struct F16Source {
  static constexpr int kBytes = 2;
  static __m256 Load8(const char* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static __m128 Load4(const char* p) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  static float Load1(const char* p) {
    std::uint16_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
  }
};

// Eight rows, eight elements each: out[kk * width + i] for kk, i in [0, 8).
template <typename Source>
void Transpose8x8(const char* source, std::int64_t row_bytes, int width, float* out) {
  const __m256 r0 = Source::Load8(source);
  const __m256 r1 = Source::Load8(source + row_bytes);
  const __m256 r2 = Source::Load8(source + 2 * row_bytes);
  const __m256 r3 = Source::Load8(source + 3 * row_bytes);
  const __m256 r4 = Source::Load8(source + 4 * row_bytes);
  const __m256 r5 = Source::Load8(source + 5 * row_bytes);
  const __m256 r6 = Source::Load8(source + 6 * row_bytes);
  const __m256 r7 = Source::Load8(source + 7 * row_bytes);
  const __m256 a0 = _mm256_unpacklo_ps(r0, r1);
  const __m256 a1 = _mm256_unpackhi_ps(r0, r1);
  const __m256 a2 = _mm256_unpacklo_ps(r2, r3);
  const __m256 a3 = _mm256_unpackhi_ps(r2, r3);
  const __m256 a4 = _mm256_unpacklo_ps(r4, r5);
  const __m256 a5 = _mm256_unpackhi_ps(r4, r5);
  const __m256 a6 = _mm256_unpacklo_ps(r6, r7);
  const __m256 a7 = _mm256_unpackhi_ps(r6, r7);
  const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44);
  const __m256 b1 = _mm256_shuffle_ps(a0, a2, 0xee);
  const __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44);
  const __m256 b3 = _mm256_shuffle_ps(a1, a3, 0xee);
  const __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44);
  const __m256 b5 = _mm256_shuffle_ps(a4, a6, 0xee);
  const __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44);
  const __m256 b7 = _mm256_shuffle_ps(a5, a7, 0xee);
  _mm256_storeu_ps(out, _mm256_permute2f128_ps(b0, b4, 0x20));
  _mm256_storeu_ps(out + width, _mm256_permute2f128_ps(b1, b5, 0x20));
  _mm256_storeu_ps(out + 2 * width, _mm256_permute2f128_ps(b2, b6, 0x20));
  _mm256_storeu_ps(out + 3 * width, _mm256_permute2f128_ps(b3, b7, 0x20));
  _mm256_storeu_ps(out + 4 * width, _mm256_permute2f128_ps(b0, b4, 0x31));
  _mm256_storeu_ps(out + 5 * width, _mm256_permute2f128_ps(b1, b5, 0x31));
  _mm256_storeu_ps(out + 6 * width, _mm256_permute2f128_ps(b2, b6, 0x31));
  _mm256_storeu_ps(out + 7 * width, _mm256_permute2f128_ps(b3, b7, 0x31));
}

template <typename Source>
void Transpose4x4(const char* source, std::int64_t row_bytes, int width, float* out) {
  __m128 r0 = Source::Load4(source);
  __m128 r1 = Source::Load4(source + row_bytes);
  __m128 r2 = Source::Load4(source + 2 * row_bytes);
  __m128 r3 = Source::Load4(source + 3 * row_bytes);
  _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
  _mm_storeu_ps(out, r0);
  _mm_storeu_ps(out + width, r1);
  _mm_storeu_ps(out + 2 * width, r2);
  _mm_storeu_ps(out + 3 * width, r3);
}

template <typename Source>
void Transpose2x4(const char* source, std::int64_t row_bytes, int width, float* out) {
  const __m128 r0 = Source::Load4(source);
  const __m128 r1 = Source::Load4(source + row_bytes);
  const __m128 low = _mm_unpacklo_ps(r0, r1);
  const __m128 high = _mm_unpackhi_ps(r0, r1);
  _mm_storel_pi(reinterpret_cast<__m64*>(out), low);
  _mm_storeh_pi(reinterpret_cast<__m64*>(out + width), low);
  _mm_storel_pi(reinterpret_cast<__m64*>(out + 2 * width), high);
  _mm_storeh_pi(reinterpret_cast<__m64*>(out + 3 * width), high);
}

template <typename Source>
void PackScalar(const char* source, std::int64_t row_bytes, int rows, std::int64_t begin, std::int64_t end, int width,
                float* out) {
  for (std::int64_t kk = begin; kk < end; ++kk) {
    for (int i = 0; i < rows; ++i) out[kk * width + i] = Source::Load1(source + i * row_bytes + kk * Source::kBytes);
  }
}

template <typename Source>
void PackRowsAs(const char* source, std::int64_t row_bytes, int rows, std::int64_t depth, int width, float* out) {
  int i = 0;
  for (; i + 8 <= rows; i += 8) {
    const char* from = source + i * row_bytes;
    std::int64_t kk = 0;
    for (; kk + 8 <= depth; kk += 8) {
      Transpose8x8<Source>(from + kk * Source::kBytes, row_bytes, width, out + kk * width + i);
    }
    PackScalar<Source>(from, row_bytes, 8, kk, depth, width, out + i);
  }
  for (; i + 4 <= rows; i += 4) {
    const char* from = source + i * row_bytes;
    std::int64_t kk = 0;
    for (; kk + 4 <= depth; kk += 4) {
      Transpose4x4<Source>(from + kk * Source::kBytes, row_bytes, width, out + kk * width + i);
    }
    PackScalar<Source>(from, row_bytes, 4, kk, depth, width, out + i);
  }
  for (; i + 2 <= rows; i += 2) {
    const char* from = source + i * row_bytes;
    std::int64_t kk = 0;
    for (; kk + 4 <= depth; kk += 4) {
      Transpose2x4<Source>(from + kk * Source::kBytes, row_bytes, width, out + kk * width + i);
    }
    PackScalar<Source>(from, row_bytes, 2, kk, depth, width, out + i);
  }
  if (i < rows) PackScalar<Source>(source + i * row_bytes, row_bytes, 1, 0, depth, width, out + i);
  if (rows < width) {
    for (std::int64_t kk = 0; kk < depth; ++kk) {
      for (int j = rows; j < width; ++j) out[kk * width + j] = 0.0f;
    }
  }
}

template <typename Source>
void PackColsAs(const char* source, std::int64_t row_bytes, std::int64_t depth, int cols, int width, float* out) {
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    const char* from = source + kk * row_bytes;
    float* to = out + kk * width;
    int i = 0;
    for (; i + 8 <= cols; i += 8) _mm256_storeu_ps(to + i, Source::Load8(from + i * Source::kBytes));
    for (; i + 4 <= cols; i += 4) _mm_storeu_ps(to + i, Source::Load4(from + i * Source::kBytes));
    for (; i < cols; ++i) to[i] = Source::Load1(from + i * Source::kBytes);
    for (; i < width; ++i) to[i] = 0.0f;
  }
}

}  // namespace

namespace avx2 {

void PackRows(DType dtype, const void* source, std::int64_t ld, int rows, std::int64_t depth, int width, float* out) {
  const char* bytes = static_cast<const char*>(source);
  switch (dtype) {
    case DType::kF16:
      return PackRowsAs<F16Source>(bytes, ld * F16Source::kBytes, rows, depth, width, out);
    case DType::kBF16:
      return PackRowsAs<BF16Source>(bytes, ld * BF16Source::kBytes, rows, depth, width, out);
    default:
      return PackRowsAs<F32Source>(bytes, ld * F32Source::kBytes, rows, depth, width, out);
  }
}

void PackCols(DType dtype, const void* source, std::int64_t ld, std::int64_t depth, int cols, int width, float* out) {
  const char* bytes = static_cast<const char*>(source);
  switch (dtype) {
    case DType::kF16:
      return PackColsAs<F16Source>(bytes, ld * F16Source::kBytes, depth, cols, width, out);
    case DType::kBF16:
      return PackColsAs<BF16Source>(bytes, ld * BF16Source::kBytes, depth, cols, width, out);
    default:
      return PackColsAs<F32Source>(bytes, ld * F32Source::kBytes, depth, cols, width, out);
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
