#include "cuda_shim/launch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "kernels/testing/cuda_shim/block_runner.h"
#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/guarded.h"
#include "kernels/testing/cuda_shim/stream.h"

namespace qst::cuda_shim {
namespace {

// What a block on sm_90 gets without asking, and at most.
constexpr std::size_t kDefaultDynamicShared = 48 * 1024;
constexpr std::size_t kMaxDynamicShared = kMaxSharedPerBlock;
constexpr std::size_t kAlignment = 128;

// Dynamic shared memory of the block that runs, between guards.
struct alignas(kAlignment) SharedMemory {
  unsigned char guard_before[kGuardBytes];
  unsigned char bytes[kMaxDynamicShared + kGuardBytes];
};

SharedMemory shared_memory;
std::size_t shared_bytes = 0;

// Held while a grid runs: there is one block runner, one set of built-in variables, one shared memory.
std::mutex& GridMutex() {
  static std::mutex* mutex = new std::mutex;
  return *mutex;
}

ThreadOrder OrderFromEnvironment() {
  const char* value = std::getenv("QST_CUDA_SHIM_ORDER");
  if (value == nullptr || std::strcmp(value, "forward") == 0) return ThreadOrder::kForward;
  if (std::strcmp(value, "reverse") == 0) return ThreadOrder::kReverse;
  std::fprintf(stderr, "CUDA shim: QST_CUDA_SHIM_ORDER=%s, must be forward or reverse\n", value);
  std::abort();
}

void CheckGuards() {
  if (TakeGuard(shared_memory.guard_before, kGuardBytes) != kGuardBytes) {
    std::fprintf(stderr, "CUDA shim: block (%u, %u, %u) wrote before the start of its dynamic shared memory\n",
                 blockIdx.x, blockIdx.y, blockIdx.z);
    std::abort();
  }
  const std::size_t intact = TakeGuard(shared_memory.bytes + shared_bytes, kGuardBytes);
  if (intact != kGuardBytes) {
    std::fprintf(stderr, "CUDA shim: block (%u, %u, %u) wrote byte %zu of its dynamic shared memory, which has %zu\n",
                 blockIdx.x, blockIdx.y, blockIdx.z, shared_bytes + intact, shared_bytes);
    std::abort();
  }
}

void RunGrid(dim3 grid, dim3 block, std::size_t dynamic_shared_bytes, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(GridMutex());
  const ThreadOrder order = OrderFromEnvironment();
  BlockRunner& runner = Runner();
  gridDim = grid;
  blockDim = block;
  shared_bytes = dynamic_shared_bytes;
  const std::uint64_t num_blocks = static_cast<std::uint64_t>(grid.x) * grid.y * grid.z;
  for (std::uint64_t i = 0; i < num_blocks; ++i) {
    const std::uint64_t index = order == ThreadOrder::kForward ? i : num_blocks - 1 - i;
    blockIdx = {static_cast<unsigned int>(index % grid.x), static_cast<unsigned int>(index / grid.x % grid.y),
                static_cast<unsigned int>(index / grid.x / grid.y)};
    if (shared_bytes != 0) {
      std::memset(shared_memory.bytes, kFreshByte, shared_bytes);
      SetGuard(shared_memory.guard_before, kGuardBytes);
      SetGuard(shared_memory.bytes + shared_bytes, kGuardBytes);
    }
    runner.Run(thread, block, order);
    if (shared_bytes != 0) CheckGuards();
  }
}

// Of each kernel that was given one: cudaFuncAttributeMaxDynamicSharedMemorySize.
struct KernelLimits {
  std::mutex mutex;
  std::map<const void*, std::size_t> max_dynamic_shared;
};

KernelLimits& Limits() {
  static KernelLimits* limits = new KernelLimits;
  return *limits;
}

std::size_t MaxDynamicShared(const void* kernel) {
  KernelLimits& limits = Limits();
  const std::lock_guard<std::mutex> lock(limits.mutex);
  const auto found = limits.max_dynamic_shared.find(kernel);
  return found == limits.max_dynamic_shared.end() ? kDefaultDynamicShared : found->second;
}

}  // namespace

unsigned char* DynamicShared() {
  if (!Runner().running()) {
    std::fprintf(stderr, "CUDA shim: dynamic shared memory is asked for by host code; only kernels may\n");
    std::abort();
  }
  return shared_memory.bytes;
}

std::size_t DynamicSharedBytes() { return shared_bytes; }

cudaError_t Launch(const cudaLaunchConfig_t* config, const void* kernel, std::function<void()> thread) {
  if (config == nullptr) return SetError(cudaErrorInvalidValue);
  if (kernel == nullptr) return SetError(cudaErrorInvalidDeviceFunction);
  const dim3 grid = config->gridDim;
  const dim3 block = config->blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0) {
    return SetError(cudaErrorInvalidConfiguration);
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
      static_cast<std::uint64_t>(block.x) * block.y * block.z > kMaxThreadsPerBlock) {
    return SetError(cudaErrorInvalidConfiguration);
  }
  const std::size_t allowed = MaxDynamicShared(kernel);
  if (config->dynamicSmemBytes > allowed) {
    std::fprintf(stderr,
                 "CUDA shim: launch with %zu bytes of dynamic shared memory; this kernel may use %zu. A kernel that "
                 "uses more than %zu asks for it by cudaFuncSetAttribute(kernel, "
                 "cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); none gets more than %zu\n",
                 config->dynamicSmemBytes, allowed, kDefaultDynamicShared, kMaxDynamicShared);
    std::abort();
  }
  return SetError(Enqueue(config->stream, StreamUse::kOwnDevice,
                          [grid, block, bytes = config->dynamicSmemBytes, thread = std::move(thread)] {
                            RunGrid(grid, block, bytes, thread);
                          }));
}

}  // namespace qst::cuda_shim

using qst::cuda_shim::SetError;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (kernel == nullptr) return SetError(cudaErrorInvalidDeviceFunction);
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize: {
      if (value < 0 || static_cast<std::size_t>(value) > qst::cuda_shim::kMaxDynamicShared) {
        return SetError(cudaErrorInvalidValue);
      }
      qst::cuda_shim::KernelLimits& limits = qst::cuda_shim::Limits();
      const std::lock_guard<std::mutex> lock(limits.mutex);
      limits.max_dynamic_shared[kernel] = static_cast<std::size_t>(value);
      return cudaSuccess;
    }
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      return SetError(value < -1 || value > 100 ? cudaErrorInvalidValue : cudaSuccess);
  }
  return SetError(cudaErrorInvalidValue);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (attributes == nullptr) return SetError(cudaErrorInvalidValue);
  if (kernel == nullptr) return SetError(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = qst::cuda_shim::kMaxThreadsPerBlock;
  attributes->numRegs = 32;
  attributes->ptxVersion = 90;
  attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(qst::cuda_shim::MaxDynamicShared(kernel));
  attributes->preferredShmemCarveout = -1;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int block_size,
                                                          std::size_t dynamic_shared_bytes) {
  if (blocks == nullptr || block_size < 1) return SetError(cudaErrorInvalidValue);
  if (kernel == nullptr) return SetError(cudaErrorInvalidDeviceFunction);
  if (block_size > qst::cuda_shim::kMaxThreadsPerBlock ||
      dynamic_shared_bytes > qst::cuda_shim::MaxDynamicShared(kernel)) {
    *blocks = 0;
    return cudaSuccess;
  }
  const int warps = (block_size + 31) / 32;
  const int by_threads = qst::cuda_shim::kMaxThreadsPerMultiprocessor / (warps * 32);
  const std::size_t shared_each = dynamic_shared_bytes + qst::cuda_shim::kReservedSharedPerBlock;
  const int by_shared = static_cast<int>(qst::cuda_shim::kSharedPerMultiprocessor / shared_each);
  *blocks = std::min({by_threads, by_shared, qst::cuda_shim::kMaxBlocksPerMultiprocessor});
  return cudaSuccess;
}
