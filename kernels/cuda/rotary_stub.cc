#include "kernels/cuda/rotary.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status Rotary(Stream&, const MatrixView&, std::int64_t, const std::int32_t*, const float*, bool) {
  return NoCudaBackend();
}

}  // namespace cuda
}  // namespace qst
