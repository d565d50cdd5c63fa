// Adjacent elements of a row as one group: a single access of up to 16 bytes where addresses allow it, element by
// element where not, to the same bits.
#ifndef QST_KERNELS_CUDA_VECTOR_CUH_
#define QST_KERNELS_CUDA_VECTOR_CUH_

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

constexpr int kWideBytes = 16;

// Elements of T that one wide access holds.
template <typename T>
constexpr int kWideElems = kWideBytes / static_cast<int>(sizeof(T));

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < kWideBytes ? sizeof(T) * kCount : kWideBytes) Pack {
  T values[kCount];
};

// The first `count` of kCount elements; the others are 0. With kWide it is all of them, aligned as Pack is, or none.
template <bool kWide, int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> LoadPack(const T* from, std::int64_t count) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.values[i] = FromFloat<T>(0.0f);
  if constexpr (kWide) {
    if (count > 0) pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) pack.values[i] = from[i];
    }
  }
  return pack;
}

template <bool kWide, int kCount, typename T>
__device__ __forceinline__ void Load(const T* from, std::int64_t count, float (&to)[kCount]) {
  const Pack<T, kCount> pack = LoadPack<kWide, kCount>(from, count);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = ToFloat(pack.values[i]);
}

// One store of 16 or 8 bytes. Written as an assignment it is often split again, where another path stores elements.
__device__ __forceinline__ void StoreWords(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
#ifdef QST_CUDA_SHIM
  *static_cast<uint4*>(to) = make_uint4(a, b, c, d);
#else
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
#endif
}
__device__ __forceinline__ void StoreWords(void* to, unsigned a, unsigned b) {
#ifdef QST_CUDA_SHIM
  *static_cast<uint2*>(to) = make_uint2(a, b);
#else
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(a), "r"(b) : "memory");
#endif
}

// A pack in global memory, aligned as Pack is.
template <typename T, int kCount>
__device__ __forceinline__ void StorePack(const Pack<T, kCount>& pack, T* to) {
  constexpr int kBytes = static_cast<int>(sizeof(T)) * kCount;
  if constexpr (kBytes % 8 == 0) {
    unsigned words[kBytes / 4];
    memcpy(words, pack.values, kBytes);
    char* const bytes = reinterpret_cast<char*>(to);
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) {
        StoreWords(bytes + 16 * i, words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 8; ++i) StoreWords(bytes + 8 * i, words[2 * i], words[2 * i + 1]);
    }
  } else {
    *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
  }
}

template <bool kWide, int kCount, typename T>
__device__ __forceinline__ void Store(const float (&from)[kCount], std::int64_t count, T* to) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.values[i] = FromFloat<T>(from[i]);
  if constexpr (kWide) {
    if (count > 0) StorePack(pack, to);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) to[i] = pack.values[i];
    }
  }
}

// Rows of a matrix in a kernel's arguments.
template <typename T>
struct DeviceRows {
  T* data;
  std::int64_t ld;

  __device__ __forceinline__ T* at(std::int64_t row, std::int64_t col) const { return data + row * ld + col; }
};

template <typename T>
DeviceRows<T> RowsOf(const MatrixView& m) {
  return DeviceRows<T>{static_cast<T*>(m.data), m.ld};
}
template <typename T>
DeviceRows<const T> RowsOf(const ConstMatrixView& m) {
  return DeviceRows<const T>{static_cast<const T*>(m.data), m.ld};
}

// Whether groups of num_elems may be accessed as Packs, counted from the start of each row. A view without data may.
inline bool AllowsPacks(const ConstMatrixView& m, int num_elems) {
  const std::int64_t elem_bytes = DTypeBytes(m.dtype);
  const std::int64_t bytes = num_elems * elem_bytes < kWideBytes ? num_elems * elem_bytes : kWideBytes;
  return reinterpret_cast<std::uintptr_t>(m.data) % bytes == 0 && (m.rows <= 1 || m.ld * elem_bytes % bytes == 0);
}
inline bool AllowsPacks(const float* vector, int num_elems) {
  return AllowsPacks(ConstMatrixView(vector, DType::kF32, 1, num_elems, num_elems), num_elems);
}

// Runs visit with std::true_type or std::false_type: DispatchBool(b, [&](auto c) { ... decltype(c)::value ... }).
template <typename Visit>
absl::Status DispatchBool(bool value, const Visit& visit) {
  return value ? visit(std::true_type()) : visit(std::false_type());
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_VECTOR_CUH_
