// Stand-in for CUDA's cuda_fp8.h: conversions of 8-bit floats, bit for bit.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_FP8_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_FP8_H_

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_shim/float_formats.h"
#include "cuda_shim/vector_types.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;

enum __nv_saturation_t { __NV_NOSAT = 0, __NV_SATFINITE = 1 };
enum __nv_fp8_interpretation_t { __NV_E4M3 = 0, __NV_E5M2 = 1 };

namespace qst::cuda_shim {
inline const Fp8Format& FormatOf(__nv_fp8_interpretation_t format) { return format == __NV_E4M3 ? kE4M3 : kE5M2; }
}  // namespace qst::cuda_shim

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t saturate, __nv_fp8_interpretation_t format) {
  return qst::cuda_shim::FloatToFp8(x, qst::cuda_shim::FormatOf(format), saturate == __NV_SATFINITE);
}

inline __nv_fp8_storage_t __nv_cvt_halfraw_to_fp8(__half_raw x, __nv_saturation_t saturate,
                                                  __nv_fp8_interpretation_t format) {
  return __nv_cvt_float_to_fp8(float(__half(x)), saturate, format);
}

inline __nv_fp8_storage_t __nv_cvt_bfloat16raw_to_fp8(__nv_bfloat16_raw x, __nv_saturation_t saturate,
                                                      __nv_fp8_interpretation_t format) {
  return __nv_cvt_float_to_fp8(float(__nv_bfloat16(x)), saturate, format);
}

// The first of the pair is in the lower byte.
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t saturate,
                                                     __nv_fp8_interpretation_t format) {
  return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(v.y, saturate, format) << 8 |
                                           __nv_cvt_float_to_fp8(v.x, saturate, format));
}

inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t code, __nv_fp8_interpretation_t format) {
  return {qst::cuda_shim::Fp8ToHalf(code, qst::cuda_shim::FormatOf(format))};
}

inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t codes, __nv_fp8_interpretation_t format) {
  return {__nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(codes & 0xffu), format).x,
          __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(codes >> 8), format).x};
}

// Saturate, as CUDA's types do.
struct __nv_fp8_e4m3 {
  __nv_fp8_e4m3() = default;
  explicit __nv_fp8_e4m3(float x) : __x(__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)) {}
  explicit operator float() const { return __half(__nv_cvt_fp8_to_halfraw(__x, __NV_E4M3)); }

  __nv_fp8_storage_t __x;
};

struct __nv_fp8_e5m2 {
  __nv_fp8_e5m2() = default;
  explicit __nv_fp8_e5m2(float x) : __x(__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2)) {}
  explicit operator float() const { return __half(__nv_cvt_fp8_to_halfraw(__x, __NV_E5M2)); }

  __nv_fp8_storage_t __x;
};

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_FP8_H_
