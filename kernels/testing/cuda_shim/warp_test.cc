// Exchange of values inside a warp: shuffles, votes, reductions, gathering, masks.
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

constexpr unsigned int kAll = 0xffffffffu;

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

TEST(CudaShimWarpTest, VotesAndReductionsSeeAllLanes) {
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

TEST(CudaShimWarpTest, PartsOfAWarpExchangeIndependently) {
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

TEST(CudaShimWarpTest, GatheredValuesStayUntilTheLanesNextExchange) {
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

TEST(CudaShimWarpTest, WarpsGatherStructs) {
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

TEST(CudaShimWarpTest, LanesOutsideTheMaskGiveNoUsableValue) {
  DeviceArray<std::uint32_t> out(8);
  RunKernel(1, 32, 0, SubMaskShuffleKernel, out.data());
  EXPECT_EQ(out.Get(), (std::vector<std::uint32_t>{4, 5, 6, 7, kAll, kAll, kAll, kAll}));
}

__global__ void MaskKernel(unsigned int mask, unsigned int returning) {
  if ((returning >> (threadIdx.x % 32) & 1u) != 0) return;
  __shfl_sync(mask, 1, 0);
}

TEST(CudaShimWarpTest, MasksMustNameLanesThatAreThere) {
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

__global__ void TwoPlacesKernel() {
  if (threadIdx.x == 5) {
    __syncwarp();
  } else {
    __syncwarp();
  }
}

TEST(CudaShimWarpTest, LanesAtDifferentPlacesDoNotMeet) {
  EXPECT_DEATH(RunKernel(1, 32, 0, TwoPlacesKernel),
               "thread \\(5, 0, 0\\) .*: comes to __syncwarp, .*warp_test.cc:[0-9]+, while other lanes of its mask "
               "0xffffffff wait in __syncwarp");
}

__global__ void WidthKernel(int width) { __shfl_xor_sync(kAll, 1, 1, width); }

TEST(CudaShimWarpTest, ShuffleWidthsArePowersOfTwo) {
  for (const int width : {0, 3, 64}) {
    EXPECT_DEATH(RunKernel(1, 32, 0, WidthKernel, width), "shuffle of width");
  }
}

}  // namespace
}  // namespace qst::cuda_shim
