#include "kernels/cuda/attention.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status Attention(Stream&, const AttentionShape&, const ConstMatrixView&, const ConstMatrixView&,
                       const ConstMatrixView&, const SequenceOffsets&, const SequenceOffsets&, const MatrixView&,
                       float*) {
  return NoCudaBackend();
}

absl::Status AttentionBackward(Stream&, const AttentionShape&, const ConstMatrixView&, const ConstMatrixView&,
                               const ConstMatrixView&, const ConstMatrixView&, const ConstMatrixView&, const float*,
                               const SequenceOffsets&, const MatrixView&, const MatrixView&, const MatrixView&) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
