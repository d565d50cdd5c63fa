// Stand-in for CUDA's cuda_bf16.h: bfloat16 numbers, alone and in pairs. Conversions have the
// device's bits: round to nearest, ties to even; every NaN becomes 0x7fff. Arithmetic rounds
// after each operation, as on a device.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_BF16_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_BF16_H_

#include "cuda_shim/float_formats.h"
#include "cuda_shim/vector_types.h"

struct __nv_bfloat16_raw {
  unsigned short x;
};

struct alignas(4) __nv_bfloat162_raw {
  unsigned short x;
  unsigned short y;
};

struct alignas(2) __nv_bfloat16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(qst::cuda_shim::FloatToBf16(value)) {}
  __nv_bfloat16(const __nv_bfloat16_raw& raw) : bits(raw.x) {}
  operator float() const { return qst::cuda_shim::Bf16ToFloat(bits); }
  operator __nv_bfloat16_raw() const { return {bits}; }

  unsigned short bits;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat162() = default;
  __nv_bfloat162(const __nv_bfloat16& first, const __nv_bfloat16& second) : x(first), y(second) {}
  __nv_bfloat162(const __nv_bfloat162_raw& raw) : x(__nv_bfloat16_raw{raw.x}), y(__nv_bfloat16_raw{raw.y}) {}
  operator __nv_bfloat162_raw() const { return {x.bits, y.bits}; }

  __nv_bfloat16 x;
  __nv_bfloat16 y;
};

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16(__nv_bfloat16_raw{bits}); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }

inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }

// The sum of two is rounded right from float's rounded sum: float has more than twice the bits. Likewise for the rest.
inline __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) + float(b); }
inline __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) - float(b); }
inline __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) * float(b); }
inline __nv_bfloat16 operator/(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) / float(b); }
inline __nv_bfloat16& operator+=(__nv_bfloat16& a, __nv_bfloat16 b) { return a = a + b; }
inline __nv_bfloat16& operator-=(__nv_bfloat16& a, __nv_bfloat16 b) { return a = a - b; }
inline __nv_bfloat16& operator*=(__nv_bfloat16& a, __nv_bfloat16 b) { return a = a * b; }
inline __nv_bfloat16& operator/=(__nv_bfloat16& a, __nv_bfloat16 b) { return a = a / b; }
inline __nv_bfloat16 operator-(__nv_bfloat16 a) {
  return __nv_bfloat16(__nv_bfloat16_raw{static_cast<unsigned short>(a.bits ^ 0x8000u)});
}
inline bool __hisnan(__nv_bfloat16 x) { return float(x) != float(x); }
inline bool __hisinf(__nv_bfloat16 x) { return (x.bits & 0x7fffu) == 0x7f80u; }

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_BF16_H_
