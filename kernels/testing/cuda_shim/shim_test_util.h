// What the shim's own tests share.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_SHIM_TEST_UTIL_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_SHIM_TEST_UTIL_H_

#include <cuda_runtime.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace qst::cuda_shim {

inline cudaLaunchConfig_t LaunchConfig(dim3 grid, dim3 block, std::size_t shared_bytes = 0,
                                       cudaStream_t stream = nullptr) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return config;
}

// Runs the kernel and expects that the launch is taken.
template <class... Params, class... Args>
void RunKernel(dim3 grid, dim3 block, std::size_t shared_bytes, void (*kernel)(Params...), Args... args) {
  const cudaLaunchConfig_t config = LaunchConfig(grid, block, shared_bytes);
  ASSERT_EQ(cudaLaunchKernelEx(&config, kernel, args...), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// A device array that tests read and write through copies.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) { EXPECT_EQ(cudaMalloc(&data_, size * sizeof(T)), cudaSuccess); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  T* data() const { return data_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  void Set(const std::vector<T>& values) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  std::size_t size_;
  T* data_ = nullptr;
};

// Sets an environment variable as long as it lives.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const std::string& value) : name_(name) {
    const char* old = std::getenv(name);
    had_old_ = old != nullptr;
    if (had_old_) old_ = old;
    setenv(name, value.c_str(), 1);
  }
  ScopedEnvironment(const ScopedEnvironment&) = delete;
  ScopedEnvironment& operator=(const ScopedEnvironment&) = delete;
  ~ScopedEnvironment() { had_old_ ? setenv(name_, old_.c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  bool had_old_;
  std::string old_;
};

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_SHIM_TEST_UTIL_H_
