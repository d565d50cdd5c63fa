// Running kernels: indices, barriers, shared memory, launches.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

__global__ void IndexKernel(int* out) {
  const unsigned int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(block * 1000 + thread);
}

TEST(CudaShimKernelTest, EachThreadOfEachBlockRunsOnceWithItsIndices) {
  DeviceArray<int> out(std::vector<int>(12 * 30, 7));
  RunKernel(dim3(3, 2, 2), dim3(5, 3, 2), 0, IndexKernel, out.data());
  const std::vector<int> values = out.Get();
  for (int block = 0; block < 12; ++block) {
    for (int thread = 0; thread < 30; ++thread) EXPECT_EQ(values[block * 30 + thread], 7 + block * 1000 + thread);
  }
}

template <int kThreads>
__global__ void BlockSumKernel(const float* in, int n, float* out) {
  __shared__ float partial[kThreads];
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) sum += in[i];
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (unsigned int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}

TEST(CudaShimKernelTest, BlockReducesThroughSharedMemoryInEitherOrderOfThreads) {
  std::vector<float> in(10000);
  float expected = 0.0f;
  for (int i = 0; i < 10000; ++i) expected += in[i] = static_cast<float>(i % 17);
  DeviceArray<float> in_device(in);
  DeviceArray<float> out(4);
  for (const char* order : {"forward", "reverse"}) {
    const ScopedEnvironment environment("QST_CUDA_SHIM_ORDER", order);
    RunKernel(4, 1024, 0, BlockSumKernel<1024>, in_device.data(), 10000, out.data());
    EXPECT_EQ(out.Get(), std::vector<float>(4, expected)) << order;
    RunKernel(4, 64, 0, BlockSumKernel<64>, in_device.data(), 10000, out.data());
    EXPECT_EQ(out.Get(), std::vector<float>(4, expected)) << order;
  }
}

// Lacks a barrier: thread t reads what thread t - 1 writes.
__global__ void RacyShiftKernel(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = 100 + static_cast<int>(threadIdx.x + 1000 * blockIdx.x);
  out[64 * blockIdx.x + threadIdx.x] = threadIdx.x == 0 ? 0 : values[threadIdx.x - 1];
}

TEST(CudaShimKernelTest, MissingBarrierShowsInOneOrderOfThreads) {
  DeviceArray<int> forward(128);
  DeviceArray<int> reverse(128);
  RunKernel(2, 64, 0, RacyShiftKernel, forward.data());
  {
    const ScopedEnvironment environment("QST_CUDA_SHIM_ORDER", "reverse");
    RunKernel(2, 64, 0, RacyShiftKernel, reverse.data());
  }
  EXPECT_NE(forward.Get(), reverse.Get());
}

__global__ void EarlyExitKernel(int* out) {
  __shared__ int values[96];
  if (threadIdx.x >= 70) return;
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[69 - threadIdx.x];
}

TEST(CudaShimKernelTest, BarrierDoesNotWaitForThreadsThatHaveReturned) {
  DeviceArray<int> out(96);
  for (const char* order : {"forward", "reverse"}) {
    const ScopedEnvironment environment("QST_CUDA_SHIM_ORDER", order);
    RunKernel(1, 96, 0, EarlyExitKernel, out.data());
    const std::vector<int> values = out.Get();
    for (int i = 0; i < 70; ++i) EXPECT_EQ(values[i], 69 - i);
    for (int i = 70; i < 96; ++i) EXPECT_EQ(values[i], -1);
  }
}

__global__ void ExitAfterMeetingKernel(unsigned int returning, int* out) {
  __syncwarp();
  if (threadIdx.x == returning) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

TEST(CudaShimKernelTest, ThreadMayReturnBeforeOthersComeToTheBarrierOrAfter) {
  for (const char* order : {"forward", "reverse"}) {
    const ScopedEnvironment environment("QST_CUDA_SHIM_ORDER", order);
    for (unsigned int returning = 0; returning < 32; ++returning) {
      DeviceArray<int> out(std::vector<int>(32, 0));
      RunKernel(1, 32, 0, ExitAfterMeetingKernel, returning, out.data());
      std::vector<int> expected(32, 1);
      expected[returning] = 0;
      EXPECT_EQ(out.Get(), expected);
    }
  }
}

__global__ void SkippedBarrierKernel(bool waits_in_warp) {
  if (threadIdx.x == 3) {
    __syncwarp();
  } else if (threadIdx.x < 40 || !waits_in_warp) {
    __syncthreads();
  }
}

TEST(CudaShimKernelTest, DeadlockNamesBlockAndPlacesWhereThreadsWait) {
  EXPECT_DEATH(RunKernel(1, 64, 0, SkippedBarrierKernel, false),
               "deadlock in block \\(0, 0, 0\\) of 64x1x1 threads: 0 have returned, the others wait for each other:\n"
               "  1 threads, the first of them \\(3, 0, 0\\), in __syncwarp at .*kernel_test.cc:[0-9]+, mask "
               "0xffffffff\n"
               "  63 threads, the first of them \\(0, 0, 0\\), in __syncthreads at ");
  EXPECT_DEATH(RunKernel(1, 64, 0, SkippedBarrierKernel, true), "24 have returned");
}

__global__ void TwoBarriersKernel() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST(CudaShimKernelTest, BarriersAtDifferentPlacesDoNotMeet) {
  EXPECT_DEATH(RunKernel(1, 32, 0, TwoBarriersKernel),
               "thread \\(16, 0, 0\\) of block \\(0, 0, 0\\): comes to __syncthreads");
}

TEST(CudaShimKernelTest, HostCodeMayNotCallWhatOnlyKernelsMay) {
  EXPECT_DEATH(__syncthreads(), "__syncthreads is called by host code");
  EXPECT_DEATH(__shfl_sync(kFullMask, 1, 0), "LaneId is called by host code");
  EXPECT_DEATH(DynamicShared(), "dynamic shared memory is asked for by host code");
}

// ---- Shared memory ----

__global__ void DynamicKernel(unsigned int* out) {
  unsigned char* bytes = DynamicShared();
  if (threadIdx.x != 0) return;
  const std::size_t size = DynamicSharedBytes();
  unsigned int fresh = 0;
  for (std::size_t i = 0; i < size; ++i) fresh += bytes[i] == 0xff ? 1u : 0u;
  out[blockIdx.x] = fresh + (reinterpret_cast<std::uintptr_t>(bytes) % 128 == 0 ? 0u : 1000000u);
  std::memset(bytes, 0, size);
}

TEST(CudaShimKernelTest, DynamicSharedMemoryIsFreshInEachBlock) {
  DeviceArray<unsigned int> out(3);
  for (const unsigned int bytes : {0u, 1u, 1000u, 48u * 1024u}) {
    RunKernel(3, 32, bytes, DynamicKernel, out.data());
    EXPECT_EQ(out.Get(), std::vector<unsigned int>(3, bytes));
  }
}

__global__ void LargeSharedKernel(int offset) {
  unsigned char* bytes = DynamicShared();
  *static_cast<volatile unsigned char*>(bytes + offset) = 1;
}

TEST(CudaShimKernelTest, LargeDynamicSharedMemoryHasToBeAskedFor) {
  EXPECT_DEATH(RunKernel(1, 1, 48 * 1024 + 1, LargeSharedKernel, 0),
               "launch with 49153 bytes of dynamic shared memory; this kernel may use 49152");
  constexpr int kMost = 227 * 1024;
  EXPECT_EQ(cudaFuncSetAttribute(LargeSharedKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMost + 1),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(LargeSharedKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMost), cudaSuccess);
  RunKernel(1, 1, kMost, LargeSharedKernel, kMost - 1);
  cudaFuncAttributes attributes;
  ASSERT_EQ(cudaFuncGetAttributes(&attributes, LargeSharedKernel), cudaSuccess);
  EXPECT_EQ(attributes.maxDynamicSharedSizeBytes, kMost);
  int blocks = -1;
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, LargeSharedKernel, 128, kMost), cudaSuccess);
  EXPECT_EQ(blocks, 1);
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, LargeSharedKernel, 1000, 0), cudaSuccess);
  EXPECT_EQ(blocks, 2);
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, LargeSharedKernel, 128, 70000), cudaSuccess);
  EXPECT_EQ(blocks, 3);
}

TEST(CudaShimKernelTest, WritesBesideDynamicSharedMemoryAreFound) {
  EXPECT_DEATH(RunKernel(1, 1, 100, LargeSharedKernel, 100),
               "wrote byte 100 of its dynamic shared memory, which has 100|use-after-poison");
  EXPECT_DEATH(RunKernel(1, 1, 100, LargeSharedKernel, -1),
               "wrote before the start of its dynamic shared memory|use-after-poison");
}

// ---- Launches ----

struct Options {
  int a;
  double b;
};

__global__ void ArgumentsKernel(long long whole, float fraction, Options options, double* out) {
  options.a += static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = static_cast<double>(whole) + fraction + options.a + options.b;
}

TEST(CudaShimKernelTest, ArgumentsAreConvertedAndEachThreadHasItsOwnCopy) {
  DeviceArray<double> out(4);
  RunKernel(1, 4, 0, ArgumentsKernel, 1000, 0.5, Options{10, 0.25}, out.data());
  EXPECT_EQ(out.Get(), (std::vector<double>{1010.75, 1011.75, 1012.75, 1013.75}));
}

__global__ void NothingKernel() {}

TEST(CudaShimKernelTest, BadLaunchesGiveCudasErrors) {
  const auto launch = [](dim3 grid, dim3 block) {
    const cudaLaunchConfig_t config = LaunchConfig(grid, block);
    return cudaLaunchKernelEx(&config, NothingKernel);
  };
  EXPECT_EQ(launch(1, 1024), cudaSuccess);
  EXPECT_EQ(launch(1, dim3(4, 4, 64)), cudaSuccess);
  EXPECT_EQ(launch(0, 32), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1, 0), 32), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, 1025), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, dim3(32, 33)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, dim3(1, 1, 65)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1, 65536), 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1, 1, 65536), 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(0x80000000u), 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaLaunchKernelEx(nullptr, NothingKernel), cudaErrorInvalidValue);
  const cudaLaunchConfig_t config = LaunchConfig(1, 1);
  void (*no_kernel)() = nullptr;
  EXPECT_EQ(cudaLaunchKernelEx(&config, no_kernel), cudaErrorInvalidDeviceFunction);
  // The last failure is remembered until somebody asks.
  EXPECT_EQ(launch(1, 1), cudaSuccess);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidDeviceFunction);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDeviceFunction);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(CudaShimKernelTest, OsThreadsMayLaunchAtTheSameTime) {
  constexpr int kThreads = 4;
  std::vector<float> in(5000);
  for (int i = 0; i < 5000; ++i) in[i] = static_cast<float>(i % 3);
  DeviceArray<float> in_device(in);
  DeviceArray<float> out(kThreads * 8);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        RunKernel(8, 128, 0, BlockSumKernel<128>, in_device.data(), 5000, out.data() + 8 * i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(out.Get(), std::vector<float>(kThreads * 8, 4999.0f));
}

}  // namespace
}  // namespace qst::cuda_shim
