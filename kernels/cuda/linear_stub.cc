#include "kernels/cuda/linear.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status Linear(Stream&, const ConstMatrixView&, const WeightView&, const ConstMatrixView&, const MatrixView&,
                    bool) {
  return NoCudaBackend();
}

absl::Status LinearBackwardInput(Stream&, const ConstMatrixView&, const WeightView&, const MatrixView&, bool) {
  return NoCudaBackend();
}

absl::Status LinearBackwardWeight(Stream&, const ConstMatrixView&, const ConstMatrixView&, const MatrixView&,
                                  const MatrixView&, bool) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
