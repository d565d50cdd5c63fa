// What the tests of streams share: handles that destroy themselves, page-locked memory, simple kernels on kSize
// numbers.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_STREAM_TEST_UTIL_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_STREAM_TEST_UTIL_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {

__global__ inline void AddKernel(int* x, int n, int value) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] += value;
}

__global__ inline void ScaleKernel(int* x, int n, int factor) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] *= factor;
}

inline constexpr int kSize = 100;

inline void Add(int* x, int value, cudaStream_t stream) {
  const cudaLaunchConfig_t config = LaunchConfig(2, 64, 0, stream);
  ASSERT_EQ(cudaLaunchKernelEx(&config, AddKernel, x, kSize, value), cudaSuccess);
}

inline void Scale(int* x, int factor, cudaStream_t stream) {
  const cudaLaunchConfig_t config = LaunchConfig(2, 64, 0, stream);
  ASSERT_EQ(cudaLaunchKernelEx(&config, ScaleKernel, x, kSize, factor), cudaSuccess);
}

class Stream {
 public:
  explicit Stream(unsigned int flags = cudaStreamNonBlocking) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&handle_, flags), cudaSuccess);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { EXPECT_EQ(cudaStreamDestroy(handle_), cudaSuccess); }
  operator cudaStream_t() const { return handle_; }  // NOLINT: stands for the handle

 private:
  cudaStream_t handle_ = nullptr;
};

class Event {
 public:
  explicit Event(unsigned int flags = cudaEventDisableTiming) {
    EXPECT_EQ(cudaEventCreateWithFlags(&handle_, flags), cudaSuccess);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { EXPECT_EQ(cudaEventDestroy(handle_), cudaSuccess); }
  operator cudaEvent_t() const { return handle_; }  // NOLINT: stands for the handle

 private:
  cudaEvent_t handle_ = nullptr;
};

// Page-locked host memory.
class Pinned {
 public:
  explicit Pinned(int value) {
    EXPECT_EQ(cudaMallocHost(&data_, kSize * sizeof(int)), cudaSuccess);
    Fill(value);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() { EXPECT_EQ(cudaFreeHost(data_), cudaSuccess); }
  int* data() const { return data_; }
  void Fill(int value) { std::fill(data_, data_ + kSize, value); }
  std::vector<int> Get() const { return std::vector<int>(data_, data_ + kSize); }

 private:
  int* data_ = nullptr;
};

inline std::vector<int> AllOf(int value) { return std::vector<int>(kSize, value); }

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_STREAM_TEST_UTIL_H_
