// Kernels of each kind that a block or a warp can make hard: barriers, exchange, shared memory, launches.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

constexpr unsigned int kAll = 0xffffffffu;

// Runs the kernel and expects that the launch is taken.
template <class... Params, class... Args>
void RunKernel(dim3 grid, dim3 block, std::size_t shared_bytes, void (*kernel)(Params...), Args... args) {
  const cudaLaunchConfig_t config = LaunchConfig(grid, block, shared_bytes);
  ASSERT_EQ(cudaLaunchKernelEx(&config, kernel, args...), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

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

__global__ void LateExitKernel(int* out) {
  // The last one to return, and not the last one to come to the barrier, sets the others free.
  if (threadIdx.x == 5) {
    __syncwarp();
    return;
  }
  __syncwarp();
  __syncthreads();
  out[threadIdx.x] = 1;
}

TEST(CudaShimKernelTest, ReturnOfTheLastMissingThreadOpensTheBarrier) {
  // The two calls of __syncwarp are at different places of the source, which is an error of its own.
  EXPECT_DEATH(RunKernel(1, 32, 0, LateExitKernel, static_cast<int*>(nullptr)),
               "comes to __syncwarp, .*kernel_test.cc:[0-9]+, while other lanes of its mask 0xffffffff wait in");
}

__global__ void PollThenExitKernel(int* out) {
  __syncwarp();
  if (threadIdx.x == 31) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

TEST(CudaShimKernelTest, ThreadMayReturnWhileOthersWaitAtTheBarrier) {
  DeviceArray<int> out(std::vector<int>(32, 0));
  for (const char* order : {"forward", "reverse"}) {
    const ScopedEnvironment environment("QST_CUDA_SHIM_ORDER", order);
    RunKernel(1, 32, 0, PollThenExitKernel, out.data());
    std::vector<int> expected(32, 1);
    expected[31] = 0;
    EXPECT_EQ(out.Get(), expected);
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
  EXPECT_DEATH(__shfl_sync(kAll, 1, 0), "LaneId is called by host code");
  EXPECT_DEATH(DynamicShared(), "dynamic shared memory is asked for by host code");
}

// ---- Warps ----

template <class T>
__global__ void ShuffleKernel(int width, int argument, T* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const T value = static_cast<T>(1000 + thread);
  T* row = out + 4 * thread;
  row[0] = __shfl_sync(kAll, value, argument, width);
  row[1] = __shfl_up_sync(kAll, value, static_cast<unsigned int>(argument), width);
  row[2] = __shfl_down_sync(kAll, value, static_cast<unsigned int>(argument), width);
  row[3] = __shfl_xor_sync(kAll, value, argument, width);
}

template <class T>
class CudaShimShuffleTest : public ::testing::Test {};
using ShuffledTypes = ::testing::Types<int, unsigned int, float, double, long long>;
TYPED_TEST_SUITE(CudaShimShuffleTest, ShuffledTypes);

TYPED_TEST(CudaShimShuffleTest, ShufflesStayInTheirGroups) {
  DeviceArray<TypeParam> out(4 * 64);
  for (int width = 1; width <= 32; width *= 2) {
    for (int argument : {0, 1, 2, 5, 16, 31}) {
      RunKernel(1, 64, 0, ShuffleKernel<TypeParam>, width, argument, out.data());
      const std::vector<TypeParam> values = out.Get();
      for (int thread = 0; thread < 64; ++thread) {
        const int lane = thread % 32;
        const int start = lane / width * width;
        const int sources[4] = {
            start + argument % width,
            lane - argument >= start ? lane - argument : lane,
            lane + argument < start + width ? lane + argument : lane,
            // Lanes of earlier groups may be read.
            (lane ^ argument) < start + width ? (lane ^ argument) : lane,
        };
        for (int i = 0; i < 4; ++i) {
          EXPECT_EQ(values[4 * thread + i], static_cast<TypeParam>(1000 + thread - lane + sources[i]))
              << "width " << width << " argument " << argument << " thread " << thread << " shuffle " << i;
        }
      }
    }
  }
}

__global__ void VoteKernel(unsigned int bits, unsigned int* out) {
  const unsigned int lane = threadIdx.x;
  const int predicate = static_cast<int>(bits >> lane & 1u);
  unsigned int* row = out + 8 * lane;
  row[0] = __ballot_sync(kAll, predicate);
  row[1] = static_cast<unsigned int>(__any_sync(kAll, predicate));
  row[2] = static_cast<unsigned int>(__all_sync(kAll, predicate));
  row[3] = __reduce_add_sync(kAll, lane + bits);
  row[4] = static_cast<unsigned int>(__reduce_min_sync(kAll, static_cast<int>(lane) - 16));
  row[5] = __reduce_max_sync(kAll, lane * 3);
  row[6] = __reduce_or_sync(kAll, predicate != 0 ? 1u << lane : 0u);
  row[7] = __match_any_sync(kAll, predicate);
}

TEST(CudaShimKernelTest, VotesAndReductionsSeeAllLanes) {
  DeviceArray<unsigned int> out(8 * 32);
  for (const unsigned int bits : {0u, 1u, 0x80000000u, 0xdeadbeefu, kAll}) {
    RunKernel(1, 32, 0, VoteKernel, bits, out.data());
    const std::vector<unsigned int> values = out.Get();
    for (unsigned int lane = 0; lane < 32; ++lane) {
      const unsigned int* row = values.data() + 8 * lane;
      EXPECT_EQ(row[0], bits);
      EXPECT_EQ(row[1], bits != 0 ? 1u : 0u);
      EXPECT_EQ(row[2], bits == kAll ? 1u : 0u);
      EXPECT_EQ(row[3], 496u + 32u * bits);
      EXPECT_EQ(static_cast<int>(row[4]), -16);
      EXPECT_EQ(row[5], 93u);
      EXPECT_EQ(row[6], bits);
      EXPECT_EQ(row[7], (bits >> lane & 1u) != 0 ? bits : ~bits);
    }
  }
}

// Halves of a warp go through exchanges of their own, and come together in between.
__global__ void HalvesKernel(unsigned int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned int mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  unsigned int sum = threadIdx.x;
  const int rounds = lane < 16 ? 3 : 8;
  for (int round = 0; round < rounds; ++round) {
    for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(mask, sum, distance);
  }
  out[lane] = __shfl_sync(kAll, sum, (lane + 16) % 32);
}

TEST(CudaShimKernelTest, PartsOfAWarpExchangeIndependently) {
  DeviceArray<unsigned int> out(32);
  RunKernel(1, 32, 0, HalvesKernel, out.data());
  const std::vector<unsigned int> values = out.Get();
  unsigned int low = 120;
  unsigned int high = 376;
  for (int round = 1; round < 3; ++round) low *= 16;
  for (int round = 1; round < 8; ++round) high *= 16;
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(values[lane], lane < 16 ? high : low);
}

// What a lane got stays as it was until its own next exchange, however far others go on without it.
__global__ void HeldValuesKernel(int* errors) {
  const int lane = static_cast<int>(threadIdx.x);
  const int* all = WarpGather(lane * 7);
  if (lane != 9) {
    for (int round = 0; round < 5; ++round) __shfl_sync(kAll & ~(1u << 9), round, 0);
  }
  for (int i = 0; i < 32; ++i) {
    if (lane == 9 && all[i] != i * 7) ++*errors;
  }
}

TEST(CudaShimKernelTest, GatheredValuesStayUntilTheLanesNextExchange) {
  DeviceArray<int> errors(std::vector<int>(1, 0));
  for (const char* order : {"forward", "reverse"}) {
    const ScopedEnvironment environment("QST_CUDA_SHIM_ORDER", order);
    RunKernel(1, 32, 0, HeldValuesKernel, errors.data());
    EXPECT_EQ(errors.Get()[0], 0);
  }
}

struct Fragment {
  float values[9];
  std::uint8_t tag;
};

__global__ void GatherKernel(float* out) {
  Fragment mine{};
  mine.values[8] = static_cast<float>(threadIdx.x);
  mine.tag = static_cast<std::uint8_t>(threadIdx.x);
  const Fragment* all = WarpGather(mine);
  float sum = 0.0f;
  for (int i = 0; i < 32; ++i) sum += all[i].values[8] * static_cast<float>(all[i].tag);
  out[threadIdx.x] = sum;
}

TEST(CudaShimKernelTest, WarpsGatherStructs) {
  DeviceArray<float> out(96);
  RunKernel(1, 96, 0, GatherKernel, out.data());
  const std::vector<float> values = out.Get();
  for (int thread = 0; thread < 96; ++thread) {
    float expected = 0.0f;
    for (int i = 0; i < 32; ++i) expected += static_cast<float>((thread / 32 * 32 + i) * (thread / 32 * 32 + i));
    EXPECT_EQ(values[thread], expected);
  }
}

__global__ void SubMaskShuffleKernel(std::uint32_t* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_down_sync(0xffu, threadIdx.x, 4);
}

TEST(CudaShimKernelTest, LanesOutsideTheMaskGiveNoUsableValue) {
  DeviceArray<std::uint32_t> out(8);
  RunKernel(1, 32, 0, SubMaskShuffleKernel, out.data());
  EXPECT_EQ(out.Get(), (std::vector<std::uint32_t>{4, 5, 6, 7, kAll, kAll, kAll, kAll}));
}

__global__ void MaskKernel(unsigned int mask, unsigned int returning) {
  if ((returning >> (threadIdx.x % 32) & 1u) != 0) return;
  __shfl_sync(mask, 1, 0);
}

TEST(CudaShimKernelTest, MasksMustNameLanesThatAreThere) {
  EXPECT_DEATH(RunKernel(1, 32, 0, MaskKernel, 0xfffffffeu, 0u),
               "__shfl_sync with mask 0xfffffffe, which lacks its own lane 0");
  EXPECT_DEATH(
      RunKernel(1, 48, 0, MaskKernel, kAll, 0u),
      "thread \\(32, 0, 0\\) .*: __shfl_sync with mask 0xffffffff, but of its warp only the lanes 0x0000ffff are "
      "there");
  EXPECT_DEATH(RunKernel(1, 32, 0, MaskKernel, kAll, 1u), "only the lanes 0xfffffffe are there");
  EXPECT_DEATH(
      RunKernel(1, 32, 0, MaskKernel, kAll, 0x80000000u),
      "thread \\(31, 0, 0\\) .*: returned while 31 lanes of its warp wait for it in __shfl_sync, mask 0xffffffff");
}

__global__ void WidthKernel(int width) { __shfl_xor_sync(kAll, 1, 1, width); }

TEST(CudaShimKernelTest, ShuffleWidthsArePowersOfTwo) {
  for (const int width : {0, 3, 64}) {
    EXPECT_DEATH(RunKernel(1, 32, 0, WidthKernel, width), "shuffle of width");
  }
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
