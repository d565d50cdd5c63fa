#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status Activate(Stream&, Activation, const ConstMatrixView&, const MatrixView&) { return NoCudaBackend(); }

absl::Status ActivateBackward(Stream&, Activation, const ConstMatrixView&, const ConstMatrixView&, const MatrixView&) {
  return NoCudaBackend();
}

absl::Status SwiGlu(Stream&, const ConstMatrixView&, const ConstMatrixView&, const MatrixView&) {
  return NoCudaBackend();
}

absl::Status SwiGluBackward(Stream&, const ConstMatrixView&, const ConstMatrixView&, const ConstMatrixView&,
                            const MatrixView&, const MatrixView&) {
  return NoCudaBackend();
}

absl::Status GateMix(Stream&, const ConstMatrixView&, const ConstMatrixView&, const ConstMatrixView&, bool,
                     const MatrixView&) {
  return NoCudaBackend();
}

absl::Status GateMixBackward(Stream&, const ConstMatrixView&, const ConstMatrixView&, const ConstMatrixView&,
                             const ConstMatrixView&, bool, const MatrixView&, const MatrixView&, const MatrixView&) {
  return NoCudaBackend();
}

absl::Status AddInto(Stream&, const ConstMatrixView&, const MatrixView&, bool) { return NoCudaBackend(); }

absl::Status GatherRows(Stream&, const ConstMatrixView&, const std::int32_t*, const MatrixView&) {
  return NoCudaBackend();
}

absl::Status PoolColumns(Stream&, Pooling, const ConstMatrixView&, const MatrixView&) { return NoCudaBackend(); }

absl::Status ScatterAddRows(Stream&, const ConstMatrixView&, const std::int32_t*, const MatrixView&) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
