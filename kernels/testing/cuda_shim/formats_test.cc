// Conversions of small floats: all values of the 16- and 8-bit formats, and floats around every rounding boundary.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "gtest/gtest.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A format as its definition says: sign, `exponent_bits`, `mantissa_bits`, IEEE-like; not for NaN and infinity.
double Decode(unsigned int code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const unsigned int mantissa = code & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(code >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double sign = (code >> (exponent_bits + mantissa_bits) & 1u) != 0 ? -1.0 : 1.0;
  const double significand = std::ldexp(mantissa, -mantissa_bits) + (exponent == 0 ? 0.0 : 1.0);
  return sign * std::ldexp(significand, (exponent == 0 ? 1 : exponent) - bias);
}

template <class T>
unsigned short Bits(T x) {
  unsigned short bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

struct Bf16 {
  using Type = __nv_bfloat16;
  static constexpr int kExponentBits = 8;
  static constexpr int kMantissaBits = 7;
  static float ToFloat(Type x) { return __bfloat162float(x); }
  static Type FromFloat(float x) { return __float2bfloat16_rn(x); }
  static Type FromBits(unsigned short bits) { return __ushort_as_bfloat16(bits); }
};

struct Half {
  using Type = __half;
  static constexpr int kExponentBits = 5;
  static constexpr int kMantissaBits = 10;
  static float ToFloat(Type x) { return __half2float(x); }
  static Type FromFloat(float x) { return __float2half_rn(x); }
  static Type FromBits(unsigned short bits) { return __ushort_as_half(bits); }
};

template <class Format>
class CudaShimFormatTest : public ::testing::Test {
 protected:
  static constexpr unsigned int kInfinity = ((1u << Format::kExponentBits) - 1) << Format::kMantissaBits;
};
using Formats = ::testing::Types<Bf16, Half>;
TYPED_TEST_SUITE(CudaShimFormatTest, Formats);

TYPED_TEST(CudaShimFormatTest, EveryValueConvertsToFloatExactlyAndBack) {
  for (unsigned int code = 0; code < 0x10000u; ++code) {
    const auto x = TypeParam::FromBits(static_cast<unsigned short>(code));
    const float value = TypeParam::ToFloat(x);
    if ((code & 0x7fffu) > this->kInfinity) {
      EXPECT_TRUE(std::isnan(value)) << code;
      EXPECT_EQ(Bits(TypeParam::FromFloat(value)), 0x7fffu) << code;
      EXPECT_TRUE(__hisnan(x));
      continue;
    }
    if ((code & 0x7fffu) == this->kInfinity) {
      EXPECT_EQ(value, code == this->kInfinity ? kInf : -kInf);
      EXPECT_TRUE(__hisinf(x));
    } else {
      EXPECT_EQ(value, Decode(code, TypeParam::kExponentBits, TypeParam::kMantissaBits)) << code;
      EXPECT_EQ(std::signbit(value), code >= 0x8000u) << code;
    }
    EXPECT_EQ(Bits(TypeParam::FromFloat(value)), code);
  }
}

// Between neighbours: the middle goes to the even one, what is beside the middle to the nearer one.
TYPED_TEST(CudaShimFormatTest, FloatsRoundToNearestTiesToEven) {
  for (unsigned int code = 0; code < this->kInfinity; ++code) {
    const double low = Decode(code, TypeParam::kExponentBits, TypeParam::kMantissaBits);
    // Beyond the largest finite number the same spacing goes on.
    const double high = Decode(code + 1, TypeParam::kExponentBits, TypeParam::kMantissaBits);
    const float middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(middle, (low + high) / 2);
    const unsigned int even = code % 2 == 0 ? code : code + 1;
    for (const unsigned int sign : {0u, 0x8000u}) {
      const float factor = sign == 0 ? 1.0f : -1.0f;
      EXPECT_EQ(Bits(TypeParam::FromFloat(factor * middle)), sign | even) << code;
      EXPECT_EQ(Bits(TypeParam::FromFloat(factor * std::nextafterf(middle, 0.0f))), sign | code) << code;
      EXPECT_EQ(Bits(TypeParam::FromFloat(factor * std::nextafterf(middle, kInf))), sign | (code + 1)) << code;
    }
  }
  EXPECT_EQ(Bits(TypeParam::FromFloat(kInf)), this->kInfinity);
  EXPECT_EQ(Bits(TypeParam::FromFloat(-std::numeric_limits<float>::max())), 0x8000u | this->kInfinity);
  EXPECT_EQ(Bits(TypeParam::FromFloat(-kNan)), 0x7fffu);
}

TYPED_TEST(CudaShimFormatTest, ArithmeticRoundsEachResult) {
  using T = typename TypeParam::Type;
  const T one = TypeParam::FromFloat(1.0f);
  const T next = TypeParam::FromFloat(1.0f + std::ldexp(1.0f, -TypeParam::kMantissaBits));
  static_assert(std::is_same_v<decltype(one + next), T>);
  EXPECT_EQ(Bits(one + next), Bits(TypeParam::FromFloat(2.0f)));  // a tie
  EXPECT_EQ(float(next - one), std::ldexp(1.0f, -TypeParam::kMantissaBits));
  EXPECT_EQ(Bits(next * next), Bits(TypeParam::FromFloat(float(next) * float(next))));
  EXPECT_EQ(Bits(one / next), Bits(TypeParam::FromFloat(1.0f / float(next))));
  EXPECT_EQ(Bits(-one), Bits(TypeParam::FromFloat(-1.0f)));
  EXPECT_TRUE(one < next);
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) == 2 && alignof(T) == 2);
  static_assert(std::is_trivially_default_constructible_v<T>, "shared arrays of it need no constructor");
}

TEST(CudaShimFormatsTest, PairsKeepTheFirstInTheLowerHalf) {
  const __nv_bfloat162 b = __floats2bfloat162_rn(1.0f, -2.0f);
  const __half2 h = __floats2half2_rn(1.0f, -2.0f);
  std::uint32_t bits;
  static_assert(sizeof(b) == sizeof(bits) && alignof(__nv_bfloat162) == 4 && alignof(__half2) == 4);
  std::memcpy(&bits, &b, sizeof(bits));
  EXPECT_EQ(bits, 0xc0003f80u);
  std::memcpy(&bits, &h, sizeof(bits));
  EXPECT_EQ(bits, 0xc0003c00u);
  EXPECT_EQ(__low2float(b) + 10 * __high2float(b), -19.0f);
  EXPECT_EQ(__low2float(h) + 10 * __high2float(h), -19.0f);
  EXPECT_EQ(__bfloat1622float2(b).y, -2.0f);
  EXPECT_EQ(__half22float2(h).y, -2.0f);
  EXPECT_EQ(float(__low2bfloat16(b)), 1.0f);
  EXPECT_EQ(float(__high2half(h)), -2.0f);
  EXPECT_EQ(float(__halves2half2(__float2half_rn(3.0f), __float2half_rn(4.0f)).y), 4.0f);
  EXPECT_EQ(float(__float22bfloat162_rn(make_float2(5.0f, 6.0f)).x), 5.0f);
  EXPECT_EQ(float(__bfloat162bfloat162(__float2bfloat16(7.0f)).y), 7.0f);
}

// ---- 8 bits ----

struct Fp8Case {
  __nv_fp8_interpretation_t format;
  int exponent_bits;
  int mantissa_bits;
  unsigned int max_finite;
  unsigned int overflow;
  bool has_infinity;
};

class CudaShimFp8Test : public ::testing::TestWithParam<Fp8Case> {
 protected:
  static unsigned int Convert(double x, __nv_saturation_t saturate) {
    return __nv_cvt_float_to_fp8(static_cast<float>(x), saturate, GetParam().format);
  }
};

INSTANTIATE_TEST_SUITE_P(Formats, CudaShimFp8Test,
                         ::testing::Values(Fp8Case{__NV_E4M3, 4, 3, 0x7e, 0x7f, false},
                                           Fp8Case{__NV_E5M2, 5, 2, 0x7b, 0x7c, true}));

TEST_P(CudaShimFp8Test, EveryCodeConvertsToHalfExactlyAndBack) {
  const Fp8Case& c = GetParam();
  for (unsigned int code = 0; code < 256; ++code) {
    const __half_raw raw = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code), c.format);
    const float value = __half(raw);
    const unsigned int magnitude = code & 0x7fu;
    if (magnitude <= c.max_finite) {
      EXPECT_EQ(value, Decode(code, c.exponent_bits, c.mantissa_bits)) << code;
      EXPECT_EQ(raw.x >= 0x8000u, code >= 0x80u) << code;
      EXPECT_EQ(Convert(value, __NV_SATFINITE), code);
      EXPECT_EQ(Convert(value, __NV_NOSAT), code);
    } else if (c.has_infinity && magnitude == c.overflow) {
      EXPECT_EQ(value, code < 0x80u ? kInf : -kInf);
    } else {
      EXPECT_EQ(raw.x, 0x7fffu) << code;
    }
  }
}

TEST_P(CudaShimFp8Test, FloatsRoundToNearestTiesToEvenAndSaturate) {
  const Fp8Case& c = GetParam();
  for (unsigned int code = 0; code <= c.max_finite; ++code) {
    const double low = Decode(code, c.exponent_bits, c.mantissa_bits);
    const double high = Decode(code + 1, c.exponent_bits, c.mantissa_bits);
    const float middle = static_cast<float>((low + high) / 2);
    for (const __nv_saturation_t saturate : {__NV_SATFINITE, __NV_NOSAT}) {
      const unsigned int above = code < c.max_finite ? code + 1 : saturate == __NV_SATFINITE ? code : c.overflow;
      const unsigned int even = code % 2 == 0 ? code : above;
      EXPECT_EQ(Convert(middle, saturate), even) << code;
      EXPECT_EQ(Convert(-middle, saturate), 0x80u | even) << code;
      EXPECT_EQ(Convert(std::nextafterf(middle, 0.0f), saturate), code) << code;
      EXPECT_EQ(Convert(std::nextafterf(middle, kInf), saturate), above) << code;
    }
  }
  EXPECT_EQ(Convert(kInf, __NV_SATFINITE), c.max_finite);
  EXPECT_EQ(Convert(-1e30, __NV_SATFINITE), 0x80u | c.max_finite);
  EXPECT_EQ(Convert(kInf, __NV_NOSAT), c.overflow);
  EXPECT_EQ(Convert(kNan, __NV_SATFINITE), 0x7fu);
  EXPECT_EQ(Convert(-kNan, __NV_NOSAT), 0x7fu);
  EXPECT_EQ(Convert(1e-30, __NV_SATFINITE), 0u);
  EXPECT_EQ(Convert(-0.0, __NV_SATFINITE), 0x80u);
}

TEST_P(CudaShimFp8Test, PairsKeepTheFirstInTheLowerByte) {
  const __nv_fp8x2_storage_t codes =
      __nv_cvt_float2_to_fp8x2(make_float2(1.0f, -2.0f), __NV_SATFINITE, GetParam().format);
  EXPECT_EQ(codes & 0xffu, Convert(1.0, __NV_SATFINITE));
  EXPECT_EQ(codes >> 8, Convert(-2.0, __NV_SATFINITE));
  const __half2 halves = __nv_cvt_fp8x2_to_halfraw2(codes, GetParam().format);
  EXPECT_EQ(__low2float(halves), 1.0f);
  EXPECT_EQ(__high2float(halves), -2.0f);
}

TEST(CudaShimFormatsTest, Fp8TypesSaturate) {
  EXPECT_EQ(__nv_fp8_e4m3(1000.0f).__x, 0x7e);
  EXPECT_EQ(float(__nv_fp8_e4m3(1000.0f)), 448.0f);
  EXPECT_EQ(float(__nv_fp8_e5m2(1e9f)), 57344.0f);
  static_assert(sizeof(__nv_fp8_e4m3) == 1);
}

}  // namespace
