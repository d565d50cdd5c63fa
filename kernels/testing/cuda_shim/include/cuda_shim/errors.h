// Error codes of the runtime API, with CUDA's values: one list for the type, the names and the texts.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_ERRORS_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_ERRORS_H_

#define QST_CUDA_SHIM_ERRORS(X)                                                                              \
  X(cudaSuccess, 0, "no error")                                                                              \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                                            \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                                           \
  X(cudaErrorInitializationError, 3, "initialization error")                                                 \
  X(cudaErrorCudartUnloading, 4, "driver shutting down")                                                     \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                      \
  X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                                                \
  X(cudaErrorInvalidSymbol, 13, "invalid device symbol")                                                     \
  X(cudaErrorInvalidHostPointer, 16, "invalid host pointer")                                                 \
  X(cudaErrorInvalidDevicePointer, 17, "invalid device pointer")                                             \
  X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                                \
  X(cudaErrorInsufficientDriver, 35, "driver version is insufficient for runtime version")                   \
  X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                           \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                            \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                   \
  X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution")                      \
  X(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error encountered")                                   \
  X(cudaErrorOperatingSystem, 304, "OS call failed or operation not supported on this OS")                   \
  X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                          \
  X(cudaErrorIllegalState, 401, "the operation cannot be performed in the present state")                    \
  X(cudaErrorNotReady, 600, "device not ready")                                                              \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                                \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                           \
  X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                                  \
  X(cudaErrorPeerAccessAlreadyEnabled, 704, "peer access is already enabled")                                \
  X(cudaErrorPeerAccessNotEnabled, 705, "peer access has not been enabled")                                  \
  X(cudaErrorHostMemoryAlreadyRegistered, 712, "part or all of the memory is already registered")            \
  X(cudaErrorHostMemoryNotRegistered, 713, "pointer does not correspond to a registered region")             \
  X(cudaErrorMisalignedAddress, 716, "misaligned address")                                                   \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                               \
  X(cudaErrorNotSupported, 801, "operation not supported")                                                   \
  X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")              \
  X(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error in capture")           \
  X(cudaErrorStreamCaptureMerge, 902, "operation would result in a merge of separate captures")              \
  X(cudaErrorStreamCaptureUnmatched, 903, "capture was not ended in the stream where it began")              \
  X(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                               \
  X(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")         \
  X(cudaErrorStreamCaptureImplicit, 906, "operation would make the legacy stream depend on a capturing one") \
  X(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream")  \
  X(cudaErrorStreamCaptureWrongThread, 908, "attempt to end a capture from a thread that did not begin it")  \
  X(cudaErrorUnknown, 999, "unknown error")

enum cudaError {
#define QST_CUDA_SHIM_ERROR(name, value, text) name = value,
  QST_CUDA_SHIM_ERRORS(QST_CUDA_SHIM_ERROR)
#undef QST_CUDA_SHIM_ERROR
};
using cudaError_t = cudaError;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
// Of the calling thread: the last call that failed. The first of the two forgets it.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_ERRORS_H_
