// Device functions that concern one thread: arithmetic, bits, atomics.
//
// Functions that are approximate on a device (__expf, __fdividef, ...) are exact to float rounding here: a test must
// allow for their documented error itself. Atomics are plain: one thread runs at a time.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_INTRINSICS_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_INTRINSICS_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// ---- Bits ----

namespace qst::cuda_shim {
template <class To, class From>
inline To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace qst::cuda_shim

inline int __float_as_int(float x) { return qst::cuda_shim::BitCast<int>(x); }
inline unsigned int __float_as_uint(float x) { return qst::cuda_shim::BitCast<unsigned int>(x); }
inline float __int_as_float(int x) { return qst::cuda_shim::BitCast<float>(x); }
inline float __uint_as_float(unsigned int x) { return qst::cuda_shim::BitCast<float>(x); }
inline long long __double_as_longlong(double x) { return qst::cuda_shim::BitCast<long long>(x); }
inline double __longlong_as_double(long long x) { return qst::cuda_shim::BitCast<double>(x); }

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned int __brev(unsigned int x) {
  unsigned int result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1u) << (31 - bit);
  return result;
}

// Bytes of (y, x), x the lower four, chosen by the low three bits of each nibble of `selector`; with a nibble's high
// bit set, the chosen byte's sign in all bits.
inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(y) << 32 | x;
  unsigned int result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned int nibble = selector >> (4 * i) & 0xfu;
    unsigned int byte = static_cast<unsigned int>(bytes >> (8 * (nibble & 7u))) & 0xffu;
    if ((nibble & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}

inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift) {
  return static_cast<unsigned int>(((static_cast<std::uint64_t>(high) << 32 | low) << (shift & 31u)) >> 32);
}
inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
  return static_cast<unsigned int>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31u));
}

inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<long long>(a) * b) >> 32); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

// ---- Float arithmetic ----

// The mathematics header declares these very names for the C library's own use, hence macros.
#define __expf(x) ::expf(x)
#define __exp2f(x) ::exp2f(x)
#define __exp10f(x) ::powf(10.0f, x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __log10f(x) ::log10f(x)
#define __powf(x, y) ::powf(x, y)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)
#define __tanf(x) ::tanf(x)
#define __sincosf(x, sine, cosine) ::sincosf(x, sine, cosine)

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
// Rounded from a double: within half a unit of float.
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return __frsqrt_rn(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

// As on a device: the nearest integer of the type if out of range, 0 for NaN. `x` is whole.
namespace qst::cuda_shim {
template <class Int>
inline Int Saturate(float x) {
  constexpr Int kMin = std::numeric_limits<Int>::min();
  constexpr Int kMax = std::numeric_limits<Int>::max();
  if (std::isnan(x)) return 0;
  if (x <= static_cast<float>(kMin)) return kMin;
  return x >= static_cast<float>(kMax) ? kMax : static_cast<Int>(x);
}
}  // namespace qst::cuda_shim

inline int __float2int_rn(float x) { return qst::cuda_shim::Saturate<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return qst::cuda_shim::Saturate<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return qst::cuda_shim::Saturate<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return qst::cuda_shim::Saturate<int>(std::ceil(x)); }
inline unsigned int __float2uint_rn(float x) { return qst::cuda_shim::Saturate<unsigned int>(std::nearbyint(x)); }
inline unsigned int __float2uint_rz(float x) { return qst::cuda_shim::Saturate<unsigned int>(std::trunc(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned int x) { return static_cast<float>(x); }

#define QST_CUDA_SHIM_MIN_MAX(result, first, second)                                                          \
  inline result min(first a, second b) {                                                                      \
    return static_cast<result>(a) < static_cast<result>(b) ? static_cast<result>(a) : static_cast<result>(b); \
  }                                                                                                           \
  inline result max(first a, second b) {                                                                      \
    return static_cast<result>(a) < static_cast<result>(b) ? static_cast<result>(b) : static_cast<result>(a); \
  }
QST_CUDA_SHIM_MIN_MAX(int, int, int)
QST_CUDA_SHIM_MIN_MAX(unsigned int, unsigned int, unsigned int)
QST_CUDA_SHIM_MIN_MAX(unsigned int, int, unsigned int)
QST_CUDA_SHIM_MIN_MAX(unsigned int, unsigned int, int)
QST_CUDA_SHIM_MIN_MAX(long, long, long)
QST_CUDA_SHIM_MIN_MAX(unsigned long, unsigned long, unsigned long)
QST_CUDA_SHIM_MIN_MAX(unsigned long, long, unsigned long)
QST_CUDA_SHIM_MIN_MAX(unsigned long, unsigned long, long)
QST_CUDA_SHIM_MIN_MAX(long long, long long, long long)
QST_CUDA_SHIM_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
QST_CUDA_SHIM_MIN_MAX(unsigned long long, long long, unsigned long long)
QST_CUDA_SHIM_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef QST_CUDA_SHIM_MIN_MAX

inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(float a, double b) { return std::fmin(static_cast<double>(a), b); }
inline double max(float a, double b) { return std::fmax(static_cast<double>(a), b); }
inline double min(double a, float b) { return std::fmin(a, static_cast<double>(b)); }
inline double max(double a, float b) { return std::fmax(a, static_cast<double>(b)); }

// ---- Memory ----

template <class T>
inline T __ldg(const T* address) {
  return *address;
}
template <class T>
inline T __ldcs(const T* address) {
  return *address;
}
template <class T>
inline T __ldcg(const T* address) {
  return *address;
}
template <class T>
inline void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
inline void __stcg(T* address, T value) {
  *address = value;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

inline std::size_t __cvta_generic_to_shared(const void* address) { return reinterpret_cast<std::size_t>(address); }

// Each stores a new value and returns the old one.
#define QST_CUDA_SHIM_ATOMIC(name, type, expression) \
  inline type name(type* address, type value) {      \
    const type old = *address;                       \
    *address = expression;                           \
    return old;                                      \
  }
QST_CUDA_SHIM_ATOMIC(atomicAdd, int,
                     static_cast<int>(static_cast<unsigned int>(old) + static_cast<unsigned int>(value)))
QST_CUDA_SHIM_ATOMIC(atomicAdd, unsigned int, old + value)
QST_CUDA_SHIM_ATOMIC(atomicAdd, unsigned long long, old + value)
QST_CUDA_SHIM_ATOMIC(atomicAdd, float, old + value)
QST_CUDA_SHIM_ATOMIC(atomicAdd, double, old + value)
QST_CUDA_SHIM_ATOMIC(atomicSub, int,
                     static_cast<int>(static_cast<unsigned int>(old) - static_cast<unsigned int>(value)))
QST_CUDA_SHIM_ATOMIC(atomicSub, unsigned int, old - value)
QST_CUDA_SHIM_ATOMIC(atomicMax, int, old < value ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicMax, unsigned int, old < value ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicMax, long long, old < value ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicMax, unsigned long long, old < value ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicMin, int, value < old ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicMin, unsigned int, value < old ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicMin, long long, value < old ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicMin, unsigned long long, value < old ? value : old)
QST_CUDA_SHIM_ATOMIC(atomicExch, int, value)
QST_CUDA_SHIM_ATOMIC(atomicExch, unsigned int, value)
QST_CUDA_SHIM_ATOMIC(atomicExch, unsigned long long, value)
QST_CUDA_SHIM_ATOMIC(atomicExch, float, value)
QST_CUDA_SHIM_ATOMIC(atomicAnd, int, old& value)
QST_CUDA_SHIM_ATOMIC(atomicAnd, unsigned int, old& value)
QST_CUDA_SHIM_ATOMIC(atomicOr, int, old | value)
QST_CUDA_SHIM_ATOMIC(atomicOr, unsigned int, old | value)
QST_CUDA_SHIM_ATOMIC(atomicXor, int, old ^ value)
QST_CUDA_SHIM_ATOMIC(atomicXor, unsigned int, old ^ value)
// Counts up to the limit and then from 0 again.
QST_CUDA_SHIM_ATOMIC(atomicInc, unsigned int, old >= value ? 0u : old + 1u)
#undef QST_CUDA_SHIM_ATOMIC

#define QST_CUDA_SHIM_CAS(type)                                       \
  inline type atomicCAS(type* address, type expected, type desired) { \
    const type old = *address;                                        \
    if (old == expected) *address = desired;                          \
    return old;                                                       \
  }
QST_CUDA_SHIM_CAS(int)
QST_CUDA_SHIM_CAS(unsigned int)
QST_CUDA_SHIM_CAS(unsigned short)
QST_CUDA_SHIM_CAS(unsigned long long)
#undef QST_CUDA_SHIM_CAS

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_INTRINSICS_H_
