// Conversions between float and smaller formats, with the bits that CUDA gives.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_FLOAT_FORMATS_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_FLOAT_FORMATS_H_

#include <cmath>
#include <cstdint>

#include "kernels/dtype_convert.h"

namespace qst::cuda_shim {

// CUDA has one NaN for results of each format; payloads and signs are lost.
inline std::uint16_t FloatToBf16(float x) { return x != x ? std::uint16_t{0x7fff} : F32ToBF16(x); }
inline std::uint16_t FloatToHalf(float x) { return x != x ? std::uint16_t{0x7fff} : F32ToF16(x); }
inline float Bf16ToFloat(std::uint16_t bits) { return BF16ToF32(bits); }
inline float HalfToFloat(std::uint16_t bits) {
  return (bits & 0x7fffu) > 0x7c00u ? BitsToFloat(0x7fffffffu) : F16ToF32(bits);
}

// An 8-bit format: 1 sign bit, exponent, mantissa.
struct Fp8Format {
  int mantissa_bits;
  int bias;
  std::uint8_t max_finite;  // code of the largest finite number
  std::uint8_t overflow;    // code of what is larger: infinity, or NaN where there is none
};
inline constexpr std::uint8_t kFp8Nan = 0x7f;
inline constexpr Fp8Format kE4M3 = {3, 7, 0x7e, kFp8Nan};
inline constexpr Fp8Format kE5M2 = {2, 15, 0x7b, 0x7c};

// Rounds to nearest, ties to even. Beyond the largest finite number, after rounding: that number with its sign if
// `saturate`, else the format's overflow code.
inline std::uint8_t FloatToFp8(float x, const Fp8Format& format, bool saturate) {
  if (std::isnan(x)) return kFp8Nan;
  const auto sign = static_cast<std::uint8_t>(std::signbit(x) ? 0x80 : 0);
  const float magnitude = std::fabs(x);
  const std::uint8_t too_large = sign | (saturate ? format.max_finite : format.overflow);
  if (std::isinf(magnitude)) return too_large;
  // Numbers of one exponent are integer multiples of one quantum; those below the smallest normal share its.
  int exponent = 1 - format.bias;
  if (magnitude >= std::ldexp(1.0f, exponent)) exponent = std::ilogb(magnitude);
  const float quanta = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
  // A normal number's leading bit, and a carry of the rounding, add to the exponent as they should.
  const float code = std::ldexp(static_cast<float>(exponent + format.bias - 1), format.mantissa_bits) + quanta;
  return code > format.max_finite ? too_large : static_cast<std::uint8_t>(sign | static_cast<std::uint8_t>(code));
}

// Exact: every number of these formats is one of half precision, too.
inline std::uint16_t Fp8ToHalf(std::uint8_t code, const Fp8Format& format) {
  const std::uint8_t magnitude = code & 0x7fu;
  const auto sign = static_cast<std::uint16_t>((code & 0x80u) << 8);
  if (magnitude > format.max_finite) {
    const bool is_infinity = magnitude == format.overflow && format.overflow != kFp8Nan;
    return is_infinity ? sign | 0x7c00u : 0x7fff;
  }
  const int exponent = magnitude >> format.mantissa_bits;
  const int mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
  const int significand = exponent == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
  const int quantum = (exponent == 0 ? 1 : exponent) - format.bias - format.mantissa_bits;
  return sign | FloatToHalf(std::ldexp(static_cast<float>(significand), quantum));
}

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_FLOAT_FORMATS_H_
