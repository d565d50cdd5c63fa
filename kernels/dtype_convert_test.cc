#include "kernels/dtype_convert.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace qst {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Value of a 16-bit float from its definition, in float64.
double Value16(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * kInf : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

TEST(DtypeConvertTest, EveryBF16MatchesItsDefinitionAndSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const double expected = Value16(half, 8, 7);
    const float actual = BF16ToF32(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual)) << bits;
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(actual)))) << bits;
    } else {
      EXPECT_EQ(actual, expected) << bits;
      EXPECT_EQ(F32ToBF16(actual), half) << bits;
    }
  }
}

TEST(DtypeConvertTest, EveryF16MatchesItsDefinitionAndSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const double expected = Value16(half, 5, 10);
    const float actual = F16ToF32(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual)) << bits;
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(actual)))) << bits;
    } else {
      EXPECT_EQ(actual, expected) << bits;
      EXPECT_EQ(F32ToF16(actual), half) << bits;
    }
  }
}

// Between each pair of neighbours: below the middle goes down, above it up, the middle to the even one.
TEST(DtypeConvertTest, RoundsToNearestAndTiesToEven) {
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const auto low = static_cast<std::uint16_t>(bits);
    const auto high = static_cast<std::uint16_t>(bits + 1);
    const double next = high == 0x7c00 ? 65536.0 : Value16(high, 5, 10);
    const auto middle = static_cast<float>((Value16(low, 5, 10) + next) / 2);
    const std::uint16_t even = (bits & 1) == 0 ? low : high;
    EXPECT_EQ(F32ToF16(middle), even) << bits;
    EXPECT_EQ(F32ToF16(std::nextafter(middle, 0.0f)), low) << bits;
    EXPECT_EQ(F32ToF16(std::nextafter(middle, kInf)), high) << bits;
    EXPECT_EQ(F32ToF16(-middle), even | 0x8000) << bits;
  }
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const float middle = BitsToFloat((bits << 16) | 0x8000u);
    const auto even = static_cast<std::uint16_t>((bits & 1) == 0 ? bits : bits + 1);
    EXPECT_EQ(F32ToBF16(middle), even) << bits;
    EXPECT_EQ(F32ToBF16(BitsToFloat(FloatBits(middle) - 1)), bits) << bits;
    EXPECT_EQ(F32ToBF16(BitsToFloat(FloatBits(middle) + 1)), bits + 1) << bits;
    EXPECT_EQ(F32ToBF16(-middle), even | 0x8000) << bits;
  }
}

TEST(DtypeConvertTest, ExtremesGoToInfinityZeroOrNan) {
  EXPECT_EQ(F32ToF16(1e10f), 0x7c00);
  EXPECT_EQ(F32ToF16(-kInf), 0xfc00);
  EXPECT_EQ(F32ToF16(-1e-30f), 0x8000);
  EXPECT_EQ(F32ToBF16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(F32ToBF16(kInf), 0x7f80);
  // All mantissa bits set: plain rounding would carry into the sign.
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(BitsToFloat(0x7fffffffu)))));
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(BitsToFloat(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(BitsToFloat(0xff800001u)))));
}

TEST(DtypeConvertTest, F8E4M3TakesTheNearestNumberAndTiesToEven) {
  // The numbers in order: codes 0 ... 0x7e.
  for (int code = 0; code < 0x7e; ++code) {
    const float low = F8E4M3ToF32(static_cast<std::uint8_t>(code));
    const float high = F8E4M3ToF32(static_cast<std::uint8_t>(code + 1));
    const int exponent = code >> 3;
    EXPECT_EQ(low, exponent == 0 ? std::ldexp(code, -9) : std::ldexp(8 + (code & 7), exponent - 10)) << code;
    ASSERT_LT(low, high) << code;
    const float middle = (low + high) / 2;
    EXPECT_EQ(F32ToF8E4M3(low), code);
    EXPECT_EQ(F32ToF8E4M3(-low), code | 0x80);
    EXPECT_EQ(F32ToF8E4M3(std::nextafter(middle, low)), code);
    EXPECT_EQ(F32ToF8E4M3(std::nextafter(middle, high)), code + 1);
    EXPECT_EQ(F32ToF8E4M3(middle), code % 2 == 0 ? code : code + 1);
  }
  for (const float large : {448.0f, 449.0f, 464.0f, 1e30f, kInf}) EXPECT_EQ(F32ToF8E4M3(large), 0x7e) << large;
  EXPECT_EQ(F32ToF8E4M3(-kInf), 0xfe);
  EXPECT_EQ(F32ToF8E4M3(1e-40f), 0);
  EXPECT_EQ(F32ToF8E4M3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
  EXPECT_TRUE(std::isnan(F8E4M3ToF32(0x7f)));
  EXPECT_TRUE(std::isnan(F8E4M3ToF32(0xff)));
}

TEST(DtypeConvertTest, RoundsToTheNearestInteger) {
  for (const float value : {0.0f, 0.5f, -0.5f, 1.5f, -2.5f, 126.5f, 127.49f, -126.51f, 1e6f}) {
    EXPECT_EQ(RoundToInt(value), static_cast<std::int32_t>(std::nearbyint(value))) << value;
  }
}

}  // namespace
}  // namespace qst
