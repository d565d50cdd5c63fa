// Products of half-precision hidden states x[T, k] with at most kMaxSkinnyOutputs columns of float32 (downsampling in a
// side network), which cost no more than reading x once. For .cu files.
//
// On tensor cores in TF32: x of a half type is exact in it, the float32 factor goes in as a sum of two (SplitTf32), so
// results are as exact as float32 ones. Fragments are loaded from where x lies, 16 bytes a lane: in which order an
// instruction sees the inner dimension is free, as long as both factors agree.
#ifndef QST_KERNELS_CUDA_GEMM_SKINNY_CUH_
#define QST_KERNELS_CUDA_GEMM_SKINNY_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "absl/status/status.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// y[T, n] (+)= x[T, k] W[n, k]^T + bias[1, n] where IsSkinnyProduct; none empty but bias. Any ld and alignment. A row's
// bits depend on that row and W alone.
absl::Status SkinnyProduct(Stream& stream, const ConstMatrixView& x, const ConstMatrixView& w,
                           const ConstMatrixView& bias, const MatrixView& y, bool accumulate);

// grad_w[n, k] (+)= grad_y[T, n]^T x[T, k] where IsSkinnyGrad; none empty. Chunks of kGradChunkRows tokens, then those
// in order, however many are made at a time; rows of zeros at the end change no bit.
absl::Status SkinnyGrad(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                        const MatrixView& grad_w, bool accumulate);

// ---- Shared by the kernels ------------------------------------------------------------------------

// Warps of a block, each of which takes a share of the inner dimension.
constexpr int kSkinnyWarps = 8;
constexpr int kSkinnyThreads = kSkinnyWarps * kWarpSize;

// Columns of the float32 factor that a block takes, for n of them in all: 16 or 32.
constexpr int kSkinnyFewOutputs = 16;
constexpr int kSkinnyManyOutputs = 32;

// Eight neighbours of a half type as they lie in memory, on 16 bytes.
template <typename T>
__device__ __forceinline__ uint4 LoadPairs(const T* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}
// The same anywhere, the first `count` of them and zeros.
template <typename T>
__device__ __forceinline__ uint4 LoadPairsUpTo(const T* from, std::int64_t count) {
  unsigned words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    std::uint16_t bits = 0;
    if (i < count) memcpy(&bits, from + i, sizeof(bits));
    words[i / 2] |= static_cast<unsigned>(bits) << (16 * (i % 2));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ unsigned PairOf(const uint4& pairs, int i) {
  return i == 0 ? pairs.x : i == 1 ? pairs.y : i == 2 ? pairs.z : pairs.w;
}

// Two neighbours of a half type as TF32, exactly.
template <typename T>
__device__ __forceinline__ void UnpackTf32(unsigned pair, std::uint32_t& first, std::uint32_t& second) {
  const float2 values = UnpackPair<T>(pair);
  first = __float_as_uint(values.x);
  second = __float_as_uint(values.y);
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_SKINNY_CUH_
