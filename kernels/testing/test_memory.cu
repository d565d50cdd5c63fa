#include "kernels/testing/test_memory.h"

#include <cuda_runtime.h>

#include <cstdlib>

namespace qst {
namespace {

bool HasDevice() {
  static const bool has_device = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }();
  return has_device;
}

}  // namespace

void* AllocateTestBytes(std::size_t num_bytes) {
  if (!HasDevice()) return std::malloc(num_bytes);
  void* memory = nullptr;
  return cudaMallocHost(&memory, num_bytes == 0 ? 1 : num_bytes) == cudaSuccess ? memory : nullptr;
}

void FreeTestBytes(void* memory) {
  if (!HasDevice()) {
    std::free(memory);
  } else if (memory != nullptr) {
    // A kernel may still write there.
    cudaDeviceSynchronize();
    cudaFreeHost(memory);
  }
}

bool SynchronizeTestDevice() { return !HasDevice() || cudaDeviceSynchronize() == cudaSuccess; }

}  // namespace qst
