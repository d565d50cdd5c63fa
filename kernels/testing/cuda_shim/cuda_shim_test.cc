#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace {

constexpr unsigned int kAll = 0xffffffffu;

cudaLaunchConfig_t Config(dim3 grid, dim3 block, std::size_t shared_bytes = 0, cudaStream_t stream = nullptr) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return config;
}

// A device array that tests read and write through copies.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) { EXPECT_EQ(cudaMalloc(&data_, size * sizeof(T)), cudaSuccess); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  T* data() const { return data_; }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  std::size_t size_;
  T* data_ = nullptr;
};

__global__ void IndexKernel(int* out) {
  const unsigned int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(block * 1000 + thread);
}

TEST(CudaShimTest, EachThreadOfEachBlockRunsOnceWithItsIndices) {
  const dim3 grid(3, 2, 2);
  const dim3 block(5, 3, 2);
  DeviceArray<int> out(std::vector<int>(12 * 30, 7));
  const auto config = Config(grid, block);
  ASSERT_EQ(cudaLaunchKernelEx(&config, IndexKernel, out.data()), cudaSuccess);
  const std::vector<int> values = out.Get();
  for (int b = 0; b < 12; ++b) {
    for (int t = 0; t < 30; ++t) EXPECT_EQ(values[b * 30 + t], 7 + b * 1000 + t);
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

TEST(CudaShimTest, BlockReducesThroughSharedMemoryWithBarriers) {
  std::vector<float> in(10000);
  for (int i = 0; i < 10000; ++i) in[i] = static_cast<float>(i % 17);
  float expected = 0.0f;
  for (const float x : in) expected += x;
  DeviceArray<float> in_device(in);
  DeviceArray<float> out(4);
  const auto config = Config(4, 256);
  ASSERT_EQ(cudaLaunchKernelEx(&config, BlockSumKernel<256>, in_device.data(), 10000, out.data()), cudaSuccess);
  for (const float sum : out.Get()) EXPECT_EQ(sum, expected);
}

__global__ void WarpSumKernel(const int* in, int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  int sum = in[thread];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAll, sum, distance);
  out[thread] = sum;
}

TEST(CudaShimTest, WarpReducesByShuffles) {
  std::vector<int> in(128);
  for (int i = 0; i < 128; ++i) in[i] = i * i;
  DeviceArray<int> in_device(in);
  DeviceArray<int> out(128);
  const auto config = Config(1, 128);
  ASSERT_EQ(cudaLaunchKernelEx(&config, WarpSumKernel, in_device.data(), out.data()), cudaSuccess);
  const std::vector<int> values = out.Get();
  for (int warp = 0; warp < 4; ++warp) {
    int expected = 0;
    for (int i = 0; i < 32; ++i) expected += in[warp * 32 + i];
    for (int i = 0; i < 32; ++i) EXPECT_EQ(values[warp * 32 + i], expected);
  }
}

}  // namespace
