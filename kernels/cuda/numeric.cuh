// Element types in kernels: conversions that round to nearest even, sums over a warp or a block in one fixed order.
#ifndef QST_KERNELS_CUDA_NUMERIC_CUH_
#define QST_KERNELS_CUDA_NUMERIC_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"

namespace qst {
namespace cuda {

using BF16 = __nv_bfloat16;
using F16 = __half;

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(BF16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(F16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ BF16 FromFloat<BF16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ F16 FromFloat<F16>(float x) {
  return __float2half_rn(x);
}

// 1 / x for x >= 1 but for a unit in the last place; 0 where that is subnormal. In the shim it is always off by one.
__device__ __forceinline__ float RoughReciprocal(float x) {
#ifdef QST_CUDA_SHIM
  const float r = 1.0f / x;
  return r >= 1.17549435e-38f ? __uint_as_float(__float_as_uint(r) + 1u) : 0.0f * r;
#else
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#endif
}

// x / y for y >= 1 within a unit in the last place, without the branch to a slow path that a plain division takes for
// x near zero, such as the smallest values of a half type. 0 for y > 2^126.
__device__ __forceinline__ float Quotient(float x, float y) {
  const float r = RoughReciprocal(y);
  const float q = __fmul_rn(x, r);
  const float rest = __fmaf_rn(-q, y, x);
  // Infinities leave no rest.
  return rest == rest ? __fmaf_rn(rest, r, q) : q;
}

// Every lane gets the sum; lanes are added in a tree that is the same for every call.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// Every thread of the block gets the sum. blockDim.x is a multiple of 32 and at most 1024; `shared` holds 32 floats
// and may be used again after the call.
__device__ __forceinline__ float BlockSum(float x, float* shared) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  x = WarpSum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = lane < static_cast<int>(blockDim.x) / kWarpSize ? shared[lane] : 0.0f;
  x = WarpSum(x);
  __syncthreads();
  return x;
}

// Calls visit with a null pointer of the element type: DispatchFloat(dtype, [&](auto* t) { using T = ...; }).
template <typename Visit>
absl::Status DispatchFloat(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::kF32:
      return visit(static_cast<float*>(nullptr));
    case DType::kBF16:
      return visit(static_cast<BF16*>(nullptr));
    case DType::kF16:
      return visit(static_cast<F16*>(nullptr));
    default:
      return absl::UnimplementedError(absl::StrCat("CUDA backend: no kernel for ", DTypeName(dtype)));
  }
}

__host__ __device__ constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_NUMERIC_CUH_
