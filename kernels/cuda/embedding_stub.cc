#include "kernels/cuda/embedding.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status EmbeddingLookup(Stream&, const std::int32_t*, const ConstMatrixView&, const std::int32_t*,
                             const ConstMatrixView&, const MatrixView&) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
