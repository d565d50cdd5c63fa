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
  std::uint8_t nan;
};
inline constexpr Fp8Format kE4M3 = {3, 7, 0x7e, 0x7f, 0x7f};
inline constexpr Fp8Format kE5M2 = {2, 15, 0x7b, 0x7c, 0x7e};

// Rounds to nearest, ties to even. Beyond the largest finite number, after rounding: that number with its sign if
// `saturate`, else the format's overflow code.
inline std::uint8_t DoubleToFp8(double x, const Fp8Format& format, bool saturate) {
  const auto sign = static_cast<std::uint8_t>(std::signbit(x) ? 0x80 : 0);
  if (std::isnan(x)) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const auto payload = static_cast<std::uint8_t>(bits >> (52 - format.mantissa_bits) & 0x3u);
    return sign | format.nan | payload;
  }
  const double magnitude = std::fabs(x);
  const std::uint8_t too_large = sign | (saturate ? format.max_finite : format.overflow);
  if (std::isinf(magnitude)) return too_large;
  // Numbers of one exponent are integer multiples of one quantum; those below the smallest normal share its.
  int exponent = 1 - format.bias;
  if (magnitude >= std::ldexp(1.0, exponent)) exponent = std::ilogb(magnitude);
  const double quanta = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
  // A normal number's leading bit, and a carry of the rounding, add to the exponent as they should.
  const double code = std::ldexp(exponent + format.bias - 1, format.mantissa_bits) + quanta;
  return code > format.max_finite ? too_large : static_cast<std::uint8_t>(sign | static_cast<std::uint8_t>(code));
}

// Exact: every number of these formats is one of half precision, too.
inline std::uint16_t Fp8ToHalf(std::uint8_t code, const Fp8Format& format) {
  const std::uint8_t magnitude = code & 0x7fu;
  if (format.overflow == format.nan ? magnitude == format.nan : magnitude > format.overflow) return 0x7fff;
  const auto sign = static_cast<std::uint16_t>((code & 0x80u) << 8);
  if (format.overflow != format.nan && magnitude == format.overflow) return sign | 0x7c00u;
  const int exponent = magnitude >> format.mantissa_bits;
  const int mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
  const int significand = exponent == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
  const int quantum = (exponent == 0 ? 1 : exponent) - format.bias - format.mantissa_bits;
  return sign | FloatToHalf(std::ldexp(static_cast<float>(significand), quantum));
}

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_FLOAT_FORMATS_H_
