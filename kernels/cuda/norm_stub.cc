#include "kernels/cuda/norm.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status RmsNorm(Stream&, const ConstMatrixView&, const float*, float, const MatrixView&, float*) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
