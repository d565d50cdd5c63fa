// Stand-in for CUDA's cuda_fp16.h: IEEE half precision numbers, alone and in pairs. Conversions have the
// device's bits: round to nearest, ties to even; every NaN becomes 0x7fff. Arithmetic rounds
// after each operation, as on a device.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_FP16_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_FP16_H_

#include "cuda_shim/float_formats.h"
#include "cuda_shim/vector_types.h"

struct __half_raw {
  unsigned short x;
};

struct alignas(4) __half2_raw {
  unsigned short x;
  unsigned short y;
};

struct alignas(2) __half {
  __half() = default;
  __half(float value) : bits(qst::cuda_shim::FloatToHalf(value)) {}
  __half(const __half_raw& raw) : bits(raw.x) {}
  operator float() const { return qst::cuda_shim::HalfToFloat(bits); }
  operator __half_raw() const { return {bits}; }

  unsigned short bits;
};

struct alignas(4) __half2 {
  __half2() = default;
  __half2(const __half& first, const __half& second) : x(first), y(second) {}
  __half2(const __half2_raw& raw) : x(__half_raw{raw.x}), y(__half_raw{raw.y}) {}
  operator __half2_raw() const { return {x.bits, y.bits}; }

  __half x;
  __half y;
};

using half = __half;
using half2 = __half2;

inline __half __ushort_as_half(unsigned short bits) { return __half(__half_raw{bits}); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }

inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __half2 __half2half2(__half x) { return {x, x}; }

// The sum of two is rounded right from float's rounded sum: float has more than twice the bits. Likewise for the rest.
inline __half operator+(__half a, __half b) { return float(a) + float(b); }
inline __half operator-(__half a, __half b) { return float(a) - float(b); }
inline __half operator*(__half a, __half b) { return float(a) * float(b); }
inline __half operator/(__half a, __half b) { return float(a) / float(b); }
inline __half& operator+=(__half& a, __half b) { return a = a + b; }
inline __half& operator-=(__half& a, __half b) { return a = a - b; }
inline __half& operator*=(__half& a, __half b) { return a = a * b; }
inline __half& operator/=(__half& a, __half b) { return a = a / b; }
inline __half operator-(__half a) { return __half(__half_raw{static_cast<unsigned short>(a.bits ^ 0x8000u)}); }
inline bool __hisnan(__half x) { return float(x) != float(x); }
inline bool __hisinf(__half x) { return (x.bits & 0x7fffu) == 0x7c00u; }

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_FP16_H_
