// Conversions between float32 and the narrower float types, portable and bit-exact on every machine.
// To fewer bits they round to nearest, ties to even; too large becomes infinity, in 8 bits the largest number; a NaN
// stays a (quiet) NaN with its sign. From fewer bits they are exact.
#ifndef QST_KERNELS_DTYPE_CONVERT_H_
#define QST_KERNELS_DTYPE_CONVERT_H_

#include <cstdint>
#include <cstring>

namespace qst {

inline std::uint32_t FloatBits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float BitsToFloat(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// bfloat16: 1 sign, 8 exponent, 7 mantissa bits; the upper half of a float32.
inline float BF16ToF32(std::uint16_t value) { return BitsToFloat(static_cast<std::uint32_t>(value) << 16); }

inline std::uint16_t F32ToBF16(float value) {
  const std::uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    // Rounding could carry a NaN's mantissa away to infinity; keep its top bits and make it quiet.
    return static_cast<std::uint16_t>((bits >> 16) | 0x0040u);
  }
  const std::uint32_t is_odd = (bits >> 16) & 1u;
  return static_cast<std::uint16_t>((bits + 0x7fffu + is_odd) >> 16);
}

// IEEE half: 1 sign, 5 exponent, 10 mantissa bits.
inline float F16ToF32(std::uint16_t value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000u) << 16;
  const std::uint32_t exponent = (value >> 10) & 0x1fu;
  const std::uint32_t mantissa = value & 0x3ffu;
  if (exponent == 0x1fu) return BitsToFloat(sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u));
  if (exponent == 0) {
    // Zero or subnormal: mantissa * 2^-24, exact in float32.
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
    return BitsToFloat(sign | FloatBits(magnitude));
  }
  return BitsToFloat(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

inline std::uint16_t F32ToF16(float value) {
  const std::uint32_t bits = FloatBits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  }
  // From 65520 on (halfway between the largest half and 2^16) everything rounds to infinity.
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  std::uint32_t kept;       // truncated result
  std::uint32_t remainder;  // what was cut off, with `half` as the halfway point
  std::uint32_t half;
  if (magnitude >= 0x38800000u) {  // normal: at least 2^-14
    kept = (magnitude - 0x38000000u) >> 13;
    remainder = magnitude & 0x1fffu;
    half = 0x1000u;
  } else if (magnitude >= 0x33000000u) {  // subnormal: at least 2^-25
    const std::uint32_t shift = 126u - (magnitude >> 23);
    const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    kept = mantissa >> shift;
    remainder = mantissa & ((1u << shift) - 1u);
    half = 1u << (shift - 1u);
  } else {
    return static_cast<std::uint16_t>(sign);
  }
  // A carry out of the mantissa moves to the next exponent, which is the right neighbour.
  if (remainder > half || (remainder == half && (kept & 1u) != 0)) ++kept;
  return static_cast<std::uint16_t>(sign | kept);
}

// The integer next to value, ties to even; |value| < 2^21.
inline std::int32_t RoundToInt(float value) {
  // At 1.5 * 2^23 float32 has steps of 1, so the addition rounds.
  constexpr float kShift = 12582912.0f;
  return static_cast<std::int32_t>(FloatBits(value + kShift) - FloatBits(kShift));
}

// 8 bits, e4m3: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, all ones is NaN, the largest number 448.
inline float F8E4M3ToF32(std::uint8_t value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x80u) << 24;
  const std::uint32_t magnitude = value & 0x7fu;
  if (magnitude == 0x7fu) return BitsToFloat(sign | 0x7fc00000u);
  // Zero or subnormal: multiples of 2^-9.
  if (magnitude < 8) return BitsToFloat(sign | FloatBits(static_cast<float>(magnitude) * 0.001953125f));
  return BitsToFloat(sign | ((magnitude << 20) + (120u << 23)));
}

inline std::uint8_t F32ToF8E4M3(float value) {
  const std::uint32_t bits = FloatBits(value);
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (magnitude > 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // above 448
  if (magnitude >= 0x3c800000u) {                                               // normal: at least 2^-6
    const std::uint32_t rounded = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
    return static_cast<std::uint8_t>(sign | (rounded - (120u << 3)));
  }
  return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(RoundToInt(BitsToFloat(magnitude) * 512.0f)));
}

}  // namespace qst

#endif  // QST_KERNELS_DTYPE_CONVERT_H_
