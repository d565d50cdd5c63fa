#include "kernels/cuda/optimizer.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::Status AdamW(Stream&, const AdamWParams&, std::int64_t, float*, const float*, float*, float*) {
  return NoCudaBackend();
}

absl::Status SumOfSquares(Stream&, const float*, std::int64_t, double*) { return NoCudaBackend(); }

}  // namespace cuda
}  // namespace qst
