// The simulated devices: how many, how big, and which one the calling thread has chosen.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_DEVICE_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_DEVICE_H_

#include <cstddef>

#include "cuda_shim/errors.h"

namespace qst::cuda_shim {

// Sizes of sm_90.
inline constexpr std::size_t kMaxSharedPerBlock = 232448;
inline constexpr std::size_t kReservedSharedPerBlock = 1024;
inline constexpr std::size_t kSharedPerMultiprocessor = 233472;
inline constexpr int kMaxThreadsPerMultiprocessor = 2048;
inline constexpr int kMaxBlocksPerMultiprocessor = 32;

// From QST_CUDA_SHIM_DEVICES, default 1. Read once.
int NumDevices();
// Of each device: QST_CUDA_SHIM_MEMORY_BYTES, default 2 GiB. Read each time.
std::size_t DeviceMemoryBytes();
// Of the calling thread.
int CurrentDevice();

// A positive number from the environment; stops the program on anything else.
std::size_t SizeFromEnvironment(const char* name, std::size_t default_value);

// Remembers an error for cudaGetLastError of the calling thread. Returns its argument.
cudaError_t SetError(cudaError_t error);

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_DEVICE_H_
