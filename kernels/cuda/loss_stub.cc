#include "kernels/cuda/loss.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status CrossEntropy(Stream&, const MatrixView&, const std::int32_t*, float, bool, float*, std::int32_t*) {
  return NoCudaBackend();
}

absl::Status SquaredError(Stream&, const MatrixView&, const float*, float, bool, float*) { return NoCudaBackend(); }

}  // namespace cuda
}  // namespace qst
