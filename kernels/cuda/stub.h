// What every function of this backend returns in a build without it.
#ifndef QST_KERNELS_CUDA_STUB_H_
#define QST_KERNELS_CUDA_STUB_H_

#include "absl/status/status.h"

namespace qst {
namespace cuda {

inline absl::Status NoCudaBackend() {
  return absl::UnimplementedError("this build has no CUDA backend; build with --config=cuda");
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_STUB_H_
