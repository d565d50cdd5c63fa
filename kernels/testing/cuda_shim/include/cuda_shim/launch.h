// Launching kernels. The only way in: cudaLaunchKernelEx (a plain compiler has no <<<>>>).
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_LAUNCH_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_LAUNCH_H_

#include <cstddef>
#include <functional>
#include <tuple>
#include <utility>

#include "cuda_shim/runtime_api.h"
#include "cuda_shim/vector_types.h"

enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore = 0,
  cudaLaunchAttributeAccessPolicyWindow = 1,
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
  cudaLaunchAttributePriority = 8,
  cudaLaunchAttributePreferredSharedMemoryCarveout = 14,
};

struct cudaLaunchAttributeValue {
  int cooperative;
  struct {
    unsigned int x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
  int priority;
  unsigned int sharedMemCarveout;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;  // ignored
  unsigned int numAttrs;
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};

struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;
  std::size_t constSizeBytes;
  std::size_t localSizeBytes;
  int maxThreadsPerBlock;
  int numRegs;
  int ptxVersion;
  int binaryVersion;
  int cacheModeCA;
  int maxDynamicSharedSizeBytes;
  int preferredShmemCarveout;
};

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int block_size,
                                                          std::size_t dynamic_shared_bytes);

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Params...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <class... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Params...), int block_size,
                                                          std::size_t dynamic_shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), block_size,
                                                       dynamic_shared_bytes);
}

namespace qst::cuda_shim {

// Enqueues the grid; `thread` is what each thread of it calls. `kernel` only identifies the kernel.
cudaError_t Launch(const cudaLaunchConfig_t* config, const void* kernel, std::function<void()> thread);

}  // namespace qst::cuda_shim

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "a kernel is launched with as many arguments as it takes");
  std::function<void()> thread;
  if (kernel != nullptr) {
    // Arguments are converted and copied now; each thread gets its own copy, which it may change.
    const auto copy = [](Params... values) { return std::tuple<Params...>(std::move(values)...); };
    thread = [kernel, values = copy(std::forward<Args>(args)...)] { std::apply(kernel, values); };
  }
  return qst::cuda_shim::Launch(config, reinterpret_cast<const void*>(kernel), std::move(thread));
}

// A kernel that may start before its predecessor in the stream ends, and says when it needs it: here, it never starts
// before.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_LAUNCH_H_
