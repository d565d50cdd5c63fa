#include "kernels/cuda/stub.h"
#include "kernels/cuda/wire.h"

namespace qst {
namespace cuda {

absl::Status EncodeRows(Stream&, const ConstMatrixView&, DType, void*) { return NoCudaBackend(); }
absl::Status DecodeRows(Stream&, const void*, DType, const MatrixView&) { return NoCudaBackend(); }

}  // namespace cuda
}  // namespace qst
