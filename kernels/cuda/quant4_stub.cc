#include "kernels/cuda/quant4.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status Dequantize(Stream&, const Quant4View&, std::int64_t, const MatrixView&) { return NoCudaBackend(); }

absl::Status Quantize4Bit(Stream&, const ConstMatrixView&, Quant4Type, int, std::uint8_t*, float*) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
