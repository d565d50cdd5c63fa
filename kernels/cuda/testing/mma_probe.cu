#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/testing/mma_probe.h"

namespace qst {
namespace cuda {
namespace {

constexpr int kRowElements = 8;

template <typename T>
__global__ void MmaKernel(MmaOperands* lanes) {
  MmaOperands& own = lanes[threadIdx.x];
  Mma<T>(own.c, own.a, own.b[0], own.b[1]);
}

__global__ void MmaTf32Kernel(MmaOperands* lanes) {
  MmaOperands& own = lanes[threadIdx.x];
  MmaTf32(own.c, own.a, own.b[0], own.b[1]);
}

__global__ void SplitTf32Kernel(const float* values, std::int64_t n, std::uint32_t* high, std::uint32_t* low) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) SplitTf32(values[i], high[i], low[i]);
}

__global__ void LoadMatricesKernel(const std::uint16_t* rows, bool transposed, Registers4* out) {
  __shared__ __align__(16) std::uint16_t shared[kWarpSize * kRowElements];
  std::uint16_t* const row = shared + threadIdx.x * kRowElements;
  for (int i = 0; i < kRowElements; ++i) row[i] = rows[threadIdx.x * kRowElements + i];
  __syncthreads();
  std::uint32_t r[4];
  if (transposed) {
    LoadMatricesTransposed(r, SharedAddressOf(row));
  } else {
    LoadMatrices(r, SharedAddressOf(row));
  }
  for (int m = 0; m < 4; ++m) out[threadIdx.x].r[m] = r[m];
}

__global__ void CopyAsyncKernel(const std::uint16_t* in, const std::uint8_t* is_valid, std::uint16_t* out) {
  constexpr int kGroupElements = kWarpSize * kRowElements;
  __shared__ __align__(16) std::uint16_t shared[2 * kGroupElements];
  const int offset = threadIdx.x * kRowElements;
  for (int group = 0; group < 2; ++group) {
    const int at = group * kGroupElements + offset;
    CopyAsync16(SharedAddressOf(shared + at), in + at, is_valid[group * kWarpSize + threadIdx.x] != 0);
    CopyAsyncCommit();
  }
  CopyAsyncWait<1>();
  __syncthreads();
  // What another lane has copied.
  const int other = (kWarpSize - 1 - threadIdx.x) * kRowElements;
  for (int i = 0; i < kRowElements; ++i) out[other + i] = shared[other + i];
  CopyAsyncWait<0>();
  __syncthreads();
  for (int i = 0; i < kRowElements; ++i) out[kGroupElements + other + i] = shared[kGroupElements + other + i];
}

template <typename T>
__global__ void PackPairKernel(const float* values, std::int64_t n, std::uint32_t* out) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) out[i] = PackPair<T>(values[2 * i], values[2 * i + 1]);
}

LaunchShape OneWarp() {
  LaunchShape shape;
  shape.grid = dim3(1);
  shape.block = dim3(kWarpSize);
  return shape;
}

}  // namespace

absl::Status ProbeMma(Stream& stream, DType dtype, MmaOperands* lanes) {
  return Launch(stream, OneWarp(), dtype == DType::kBF16 ? MmaKernel<BF16> : MmaKernel<F16>, lanes);
}

absl::Status ProbeMmaTf32(Stream& stream, MmaOperands* lanes) {
  return Launch(stream, OneWarp(), MmaTf32Kernel, lanes);
}

absl::Status ProbeSplitTf32(Stream& stream, const float* values, std::int64_t n, std::uint32_t* high,
                            std::uint32_t* low) {
  LaunchShape shape = OneWarp();
  shape.grid = dim3(static_cast<unsigned>((n + kWarpSize - 1) / kWarpSize));
  return Launch(stream, shape, SplitTf32Kernel, values, n, high, low);
}

absl::Status ProbeLoadMatrices(Stream& stream, bool transposed, const std::uint16_t* rows, Registers4* out) {
  return Launch(stream, OneWarp(), LoadMatricesKernel, rows, transposed, out);
}

absl::Status ProbeCopyAsync(Stream& stream, const std::uint16_t* in, const std::uint8_t* is_valid, std::uint16_t* out) {
  return Launch(stream, OneWarp(), CopyAsyncKernel, in, is_valid, out);
}

absl::Status ProbePackPair(Stream& stream, DType dtype, const float* values, std::int64_t n, std::uint32_t* out) {
  LaunchShape shape = OneWarp();
  shape.grid = dim3(static_cast<unsigned>((n + kWarpSize - 1) / kWarpSize));
  return Launch(stream, shape, dtype == DType::kBF16 ? PackPairKernel<BF16> : PackPairKernel<F16>, values, n, out);
}

}  // namespace cuda
}  // namespace qst
