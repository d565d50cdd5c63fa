// Loads and stores of 16 bytes, and when a matrix allows for them. For .cu files.
#ifndef QST_KERNELS_CUDA_VECTOR_IO_CUH_
#define QST_KERNELS_CUDA_VECTOR_IO_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "kernels/cuda/numeric.cuh"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

constexpr std::int64_t kVectorBytes = 16;

inline bool IsAligned(const void* pointer, std::int64_t bytes = kVectorBytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0;
}
// Every row begins on 16 bytes.
inline bool RowsAreAligned(const ConstMatrixView& m) {
  return IsAligned(m.data) && (m.rows <= 1 || m.ld * DTypeBytes(m.dtype) % kVectorBytes == 0);
}

// Two neighbouring elements as 32 bits, and back.
template <typename T>
__device__ __forceinline__ unsigned PackPair(float first, float second);
template <>
__device__ __forceinline__ unsigned PackPair<BF16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  unsigned bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
template <>
__device__ __forceinline__ unsigned PackPair<F16>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  unsigned bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
template <typename T>
__device__ __forceinline__ float2 UnpackPair(unsigned bits);
template <>
__device__ __forceinline__ float2 UnpackPair<BF16>(unsigned bits) {
  __nv_bfloat162 pair;
  memcpy(&pair, &bits, sizeof(bits));
  return __bfloat1622float2(pair);
}
template <>
__device__ __forceinline__ float2 UnpackPair<F16>(unsigned bits) {
  __half2 pair;
  memcpy(&pair, &bits, sizeof(bits));
  return __half22float2(pair);
}

// Eight neighbouring elements; the address is a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ void Store8(const float (&values)[8], T* to) {
  *reinterpret_cast<uint4*>(to) = make_uint4(PackPair<T>(values[0], values[1]), PackPair<T>(values[2], values[3]),
                                             PackPair<T>(values[4], values[5]), PackPair<T>(values[6], values[7]));
}
template <>
__device__ __forceinline__ void Store8<float>(const float (&values)[8], float* to) {
  reinterpret_cast<float4*>(to)[0] = make_float4(values[0], values[1], values[2], values[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(values[4], values[5], values[6], values[7]);
}

template <typename T>
__device__ __forceinline__ void Load8(const T* from, float (&values)[8]) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = UnpackPair<T>(words[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}
template <>
__device__ __forceinline__ void Load8<float>(const float* from, float (&values)[8]) {
  const float4 low = __ldg(reinterpret_cast<const float4*>(from));
  const float4 high = __ldg(reinterpret_cast<const float4*>(from) + 1);
  values[0] = low.x;
  values[1] = low.y;
  values[2] = low.z;
  values[3] = low.w;
  values[4] = high.x;
  values[5] = high.y;
  values[6] = high.z;
  values[7] = high.w;
}

// The same for any address: `count` elements from there on (8 or fewer), the rest zero.
template <typename T>
__device__ __forceinline__ void LoadUpTo8(const T* from, std::int64_t count, bool is_aligned, float (&values)[8]) {
  if (is_aligned && count >= 8) {
    Load8(from, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = i < count ? ToFloat(from[i]) : 0.0f;
}
template <typename T>
__device__ __forceinline__ void StoreUpTo8(const float (&values)[8], std::int64_t count, bool is_aligned, T* to) {
  if (is_aligned && count >= 8) {
    Store8(values, to);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = FromFloat<T>(values[i]);
  }
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_VECTOR_IO_CUH_
