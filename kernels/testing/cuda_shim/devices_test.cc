// Several devices; the number is read once, so these tests have a process of their own.
#include <cuda_runtime.h>

#include <cstdlib>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

__global__ void CountKernel(int* x) { atomicAdd(x, 1); }

class CudaShimDevicesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("QST_CUDA_SHIM_DEVICES", "3", 1); }
  void TearDown() override {
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    cudaGetLastError();
  }
};

TEST_F(CudaShimDevicesTest, EachThreadChoosesItsDevice) {
  int count = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 3);
  ASSERT_EQ(cudaSetDevice(2), cudaSuccess);
  std::thread([] {
    int device = -1;
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 0);
  }).join();
  int device = -1;
  ASSERT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 2);
  EXPECT_EQ(cudaSetDevice(3), cudaErrorInvalidDevice);
  int can_access = -1;
  EXPECT_EQ(cudaDeviceCanAccessPeer(&can_access, 0, 2), cudaSuccess);
  EXPECT_EQ(can_access, 1);
  EXPECT_EQ(cudaDeviceCanAccessPeer(&can_access, 2, 2), cudaSuccess);
  EXPECT_EQ(can_access, 0);
  EXPECT_EQ(cudaDeviceEnablePeerAccess(0, 0), cudaSuccess);
  EXPECT_EQ(cudaDeviceEnablePeerAccess(2, 0), cudaErrorInvalidDevice);
}

TEST_F(CudaShimDevicesTest, MemoryBelongsToTheDeviceOfTheThread) {
  const ScopedEnvironment environment("QST_CUDA_SHIM_MEMORY_BYTES", "1000");
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  DeviceArray<unsigned char> on_1(std::vector<unsigned char>(700, 7));
  void* more = nullptr;
  EXPECT_EQ(cudaMalloc(&more, 700), cudaErrorMemoryAllocation);
  ASSERT_EQ(cudaSetDevice(2), cudaSuccess);
  DeviceArray<unsigned char> on_2(700);
  cudaPointerAttributes attributes;
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, on_1.data()), cudaSuccess);
  EXPECT_EQ(attributes.device, 1);
  EXPECT_EQ(cudaMemcpyPeerAsync(on_2.data(), 1, on_1.data(), 2, 700), cudaErrorInvalidValue);
  ASSERT_EQ(cudaMemcpyPeerAsync(on_2.data(), 2, on_1.data(), 1, 700), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(on_2.Get(), std::vector<unsigned char>(700, 7));
}

TEST_F(CudaShimDevicesTest, StreamsAndEventsBelongToOneDevice) {
  cudaStream_t on_0 = nullptr;
  cudaEvent_t event_on_0 = nullptr;
  ASSERT_EQ(cudaStreamCreate(&on_0), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&event_on_0), cudaSuccess);
  DeviceArray<int> x(std::vector<int>(1, 0));
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  cudaLaunchConfig_t config = LaunchConfig(2, 32, 0, on_0);
  EXPECT_EQ(cudaLaunchKernelEx(&config, CountKernel, x.data()), cudaErrorInvalidResourceHandle);
  config.stream = nullptr;
  EXPECT_EQ(cudaLaunchKernelEx(&config, CountKernel, x.data()), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event_on_0, nullptr), cudaErrorInvalidResourceHandle);
  // Copies, waits and records go by the stream.
  EXPECT_EQ(cudaMemsetAsync(x.data(), 0, 4, on_0), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event_on_0, on_0), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event_on_0), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(on_0), cudaSuccess);
  EXPECT_EQ(x.Get()[0], 0);
  EXPECT_EQ(cudaStreamDestroy(on_0), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event_on_0), cudaSuccess);
}

TEST_F(CudaShimDevicesTest, SynchronisingOneDeviceLeavesOthersAlone) {
  const ScopedEnvironment mode("QST_CUDA_SHIM_ASYNC", "late");
  DeviceArray<int> x(std::vector<int>(1, 0));
  cudaStream_t on_0 = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&on_0, cudaStreamNonBlocking), cudaSuccess);
  const cudaLaunchConfig_t config = LaunchConfig(2, 32, 0, on_0);
  ASSERT_EQ(cudaLaunchKernelEx(&config, CountKernel, x.data()), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(x.Get()[0], 0);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(x.Get()[0], 64);
  EXPECT_EQ(cudaStreamDestroy(on_0), cudaSuccess);
}

}  // namespace
}  // namespace qst::cuda_shim
