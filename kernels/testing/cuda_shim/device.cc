#include "kernels/testing/cuda_shim/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_shim/runtime_api.h"
#include "kernels/testing/cuda_shim/stream.h"

namespace qst::cuda_shim {
namespace {

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

bool IsDevice(int device) { return device >= 0 && device < NumDevices(); }

cudaDeviceProp Properties(int device) {
  cudaDeviceProp p{};
  std::snprintf(p.name, sizeof(p.name), "CUDA host shim");
  std::memcpy(p.uuid.bytes, "qst-cuda-shim", 13);
  p.uuid.bytes[15] = static_cast<char>(device);
  p.totalGlobalMem = DeviceMemoryBytes();
  p.sharedMemPerBlock = 48 * 1024;
  p.regsPerBlock = 65536;
  p.warpSize = 32;
  p.memPitch = 0x7fffffff;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsDim[0] = 1024;
  p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = 65535;
  p.maxGridSize[2] = 65535;
  p.totalConstMem = 65536;
  p.major = 9;
  p.minor = 0;
  // Few, so that kernels that size their grid by it loop even on small data.
  p.multiProcessorCount = 4;
  p.canMapHostMemory = 1;
  p.concurrentKernels = 1;
  p.pciBusID = device + 1;
  p.asyncEngineCount = 2;
  p.unifiedAddressing = 1;
  p.memoryBusWidth = 5120;
  p.l2CacheSize = 4 << 20;
  p.maxThreadsPerMultiProcessor = kMaxThreadsPerMultiprocessor;
  p.streamPrioritiesSupported = 1;
  p.sharedMemPerMultiprocessor = kSharedPerMultiprocessor;
  p.regsPerMultiprocessor = 65536;
  p.sharedMemPerBlockOptin = kMaxSharedPerBlock;
  p.maxBlocksPerMultiProcessor = kMaxBlocksPerMultiprocessor;
  p.reservedSharedMemPerBlock = kReservedSharedPerBlock;
  return p;
}

}  // namespace

std::size_t SizeFromEnvironment(const char* name, std::size_t default_value) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return default_value;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*end != '\0' || *text == '-' || value == 0) {
    std::fprintf(stderr, "CUDA shim: %s=%s, must be a positive number\n", name, text);
    std::abort();
  }
  return value;
}

int NumDevices() {
  static const int count = static_cast<int>(SizeFromEnvironment("QST_CUDA_SHIM_DEVICES", 1));
  return count;
}

std::size_t DeviceMemoryBytes() { return SizeFromEnvironment("QST_CUDA_SHIM_MEMORY_BYTES", std::size_t{2} << 30); }

int CurrentDevice() { return current_device; }

cudaError_t SetError(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace qst::cuda_shim

using qst::cuda_shim::IsDevice;
using qst::cuda_shim::SetError;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define QST_CUDA_SHIM_NAME(name, value, text) \
  case name:                                  \
    return #name;
    QST_CUDA_SHIM_ERRORS(QST_CUDA_SHIM_NAME)
#undef QST_CUDA_SHIM_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define QST_CUDA_SHIM_TEXT(name, value, text) \
  case name:                                  \
    return text;
    QST_CUDA_SHIM_ERRORS(QST_CUDA_SHIM_TEXT)
#undef QST_CUDA_SHIM_TEXT
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = qst::cuda_shim::last_error;
  qst::cuda_shim::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return qst::cuda_shim::last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  if (count == nullptr) return SetError(cudaErrorInvalidValue);
  *count = qst::cuda_shim::NumDevices();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (!IsDevice(device)) return SetError(cudaErrorInvalidDevice);
  qst::cuda_shim::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  if (device == nullptr) return SetError(cudaErrorInvalidValue);
  *device = qst::cuda_shim::current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (properties == nullptr) return SetError(cudaErrorInvalidValue);
  if (!IsDevice(device)) return SetError(cudaErrorInvalidDevice);
  *properties = qst::cuda_shim::Properties(device);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (value == nullptr) return SetError(cudaErrorInvalidValue);
  if (!IsDevice(device)) return SetError(cudaErrorInvalidDevice);
  const cudaDeviceProp p = qst::cuda_shim::Properties(device);
  const auto give = [value](std::size_t result) {
    *value = static_cast<int>(result);
    return cudaSuccess;
  };
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return give(p.maxThreadsPerBlock);
    case cudaDevAttrMaxBlockDimX:
      return give(p.maxThreadsDim[0]);
    case cudaDevAttrMaxBlockDimY:
      return give(p.maxThreadsDim[1]);
    case cudaDevAttrMaxBlockDimZ:
      return give(p.maxThreadsDim[2]);
    case cudaDevAttrMaxGridDimX:
      return give(p.maxGridSize[0]);
    case cudaDevAttrMaxGridDimY:
      return give(p.maxGridSize[1]);
    case cudaDevAttrMaxGridDimZ:
      return give(p.maxGridSize[2]);
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return give(p.sharedMemPerBlock);
    case cudaDevAttrTotalConstantMemory:
      return give(p.totalConstMem);
    case cudaDevAttrWarpSize:
      return give(p.warpSize);
    case cudaDevAttrMaxRegistersPerBlock:
      return give(p.regsPerBlock);
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
      return give(1000000);  // kHz
    case cudaDevAttrMultiProcessorCount:
      return give(p.multiProcessorCount);
    case cudaDevAttrConcurrentKernels:
      return give(p.concurrentKernels);
    case cudaDevAttrGlobalMemoryBusWidth:
      return give(p.memoryBusWidth);
    case cudaDevAttrL2CacheSize:
      return give(p.l2CacheSize);
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return give(p.maxThreadsPerMultiProcessor);
    case cudaDevAttrAsyncEngineCount:
      return give(p.asyncEngineCount);
    case cudaDevAttrUnifiedAddressing:
      return give(p.unifiedAddressing);
    case cudaDevAttrComputeCapabilityMajor:
      return give(p.major);
    case cudaDevAttrComputeCapabilityMinor:
      return give(p.minor);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return give(p.sharedMemPerMultiprocessor);
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return give(p.regsPerMultiprocessor);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return give(p.sharedMemPerBlockOptin);
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return give(p.maxBlocksPerMultiProcessor);
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return give(p.reservedSharedMemPerBlock);
    // What it does not have.
    case cudaDevAttrIntegrated:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrMemoryPoolsSupported:
      return give(0);
  }
  return SetError(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int length, int device) {
  if (bus_id == nullptr || length < 13) return SetError(cudaErrorInvalidValue);
  if (!IsDevice(device)) return SetError(cudaErrorInvalidDevice);
  std::snprintf(bus_id, static_cast<std::size_t>(length), "0000:%02x:00.0", static_cast<unsigned int>(device + 1));
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can_access, int device, int peer) {
  if (can_access == nullptr) return SetError(cudaErrorInvalidValue);
  if (!IsDevice(device) || !IsDevice(peer)) return SetError(cudaErrorInvalidDevice);
  *can_access = device != peer ? 1 : 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
  if (flags != 0) return SetError(cudaErrorInvalidValue);
  if (!IsDevice(peer) || peer == qst::cuda_shim::CurrentDevice()) return SetError(cudaErrorInvalidDevice);
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

cudaError_t cudaRuntimeGetVersion(int* version) {
  if (version == nullptr) return SetError(cudaErrorInvalidValue);
  *version = CUDART_VERSION;
  return cudaSuccess;
}
