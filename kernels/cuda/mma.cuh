// Matrix instructions of a warp and asynchronous copies to shared memory: mma.m16n8k16 of half types, mma.m16n8k8 of
// TF32, ldmatrix, cp.async (PTX ISA; sm_80 and later). All 32 lanes call together. A build for the shim takes their
// definition (mma_definition.cuh) instead.
//
// Fragments, with g = lane / 4 and t = lane % 4; a register holds two neighbours, the first in its low half:
//   a[r]  A [16, 16]: row g + 8 (r % 2), columns 2t + 8 (r / 2) + {0, 1}
//   b[r]  B [16, 8]:  rows 2t + 8 r + {0, 1}, column g
//   c[i]  C [16, 8]:  row g + 8 (i / 2), column 2t + i % 2
// of TF32, a register holds one element:
//   a[r]  A [16, 8]:  row g + 8 (r % 2), column t + 4 (r / 2)
//   b[r]  B [8, 8]:   row t + 4 r, column g
//   c[i]  as above
#ifndef QST_KERNELS_CUDA_MMA_CUH_
#define QST_KERNELS_CUDA_MMA_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"

#ifdef QST_CUDA_SHIM
#include "kernels/cuda/mma_definition.cuh"
#else

namespace qst {
namespace cuda {

// A place in shared memory; counts bytes.
using SharedAddress = std::uint32_t;

__device__ __forceinline__ SharedAddress SharedAddressOf(const void* shared) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(shared));
}

// c += A B, T is BF16 or F16.
template <typename T>
__device__ __forceinline__ void Mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, BF16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, F16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// c += A B, both TF32: float32 with 10 bits of mantissa, as RoundToTf32 gives them.
__device__ __forceinline__ void MmaTf32(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                        std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The bits of x rounded to TF32, to nearest, ties away from zero.
__device__ __forceinline__ std::uint32_t RoundToTf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 m + i names row i of matrix m, 16-byte aligned.
// r[m] of a lane is matrix m at row g, columns 2t and 2t + 1.
__device__ __forceinline__ void LoadMatrices(std::uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// The same of the transposes: r[m] is matrix m at rows 2t and 2t + 1, column g.
__device__ __forceinline__ void LoadMatricesTransposed(std::uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// Starts a copy of 16 bytes, both addresses 16-byte aligned; zeros if not is_valid, when `global` is not read.
__device__ __forceinline__ void CopyAsync16(SharedAddress shared, const void* global, bool is_valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(is_valid ? 16 : 0)
               : "memory");
}

// Copies started since the last call become a group.
__device__ __forceinline__ void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's groups but the newest kPending. Others see the data after a barrier.
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Both values rounded to nearest even, `low` in the low half.
template <typename T>
__device__ __forceinline__ std::uint32_t PackPair(float low, float high) {
  std::uint32_t pair;
  if constexpr (std::is_same_v<T, BF16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    static_assert(std::is_same_v<T, F16>);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_CUDA_SHIM

namespace qst {
namespace cuda {

// x = high + low but for 2^-22 of it, both TF32: a product of two such sums, without low times low, is as exact as one
// in float32 (to about 2^-21). Not for infinities.
__device__ __forceinline__ void SplitTf32(float x, std::uint32_t& high, std::uint32_t& low) {
  high = RoundToTf32(x);
  low = RoundToTf32(x - __uint_as_float(high));
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_MMA_CUH_
