#include "kernels/cuda/norm.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status RmsNorm(Stream&, const ConstMatrixView&, const float*, float, const MatrixView&, float*) {
  return NoCudaBackend();
}

absl::Status LayerNorm(Stream&, const ConstMatrixView&, const float*, const float*, float, const MatrixView&, float*,
                       float*) {
  return NoCudaBackend();
}

absl::Status RmsNormBackward(Stream&, const ConstMatrixView&, const ConstMatrixView&, const float*, const float*,
                             const MatrixView&, float*, bool) {
  return NoCudaBackend();
}

absl::Status LayerNormBackward(Stream&, const ConstMatrixView&, const ConstMatrixView&, const float*, const float*,
                               const float*, const MatrixView&, float*, float*, bool) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
