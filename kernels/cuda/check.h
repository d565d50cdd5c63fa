// CUDA's error codes as absl::Status. Included by CUDA sources only.
#ifndef QST_KERNELS_CUDA_CHECK_H_
#define QST_KERNELS_CUDA_CHECK_H_

#include <cublasLt.h>
#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace qst {
namespace cuda {

// kResourceExhausted for memory, kInternal else: "cudaMemcpyAsync: an illegal memory access was encountered".
inline absl::Status ToStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

inline absl::Status ToStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasLtGetStatusString(status)));
}

}  // namespace cuda
}  // namespace qst

// Returns from this function unless the CUDA or cuBLASLt call succeeded; the message names the call.
#define QST_CUDA_RETURN_IF_ERROR(call)                                     \
  do {                                                                     \
    ::absl::Status qst_cuda_status_ = ::qst::cuda::ToStatus((call), #call); \
    if (!qst_cuda_status_.ok()) return qst_cuda_status_;                   \
  } while (false)

#endif  // QST_KERNELS_CUDA_CHECK_H_
