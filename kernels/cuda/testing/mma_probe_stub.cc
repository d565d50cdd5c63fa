#include "kernels/cuda/stub.h"
#include "kernels/cuda/testing/mma_probe.h"

namespace qst {
namespace cuda {

absl::Status ProbeMma(Stream&, DType, MmaOperands*) { return NoCudaBackend(); }
absl::Status ProbeMmaTf32(Stream&, MmaOperands*) { return NoCudaBackend(); }
absl::Status ProbeSplitTf32(Stream&, const float*, std::int64_t, std::uint32_t*, std::uint32_t*) {
  return NoCudaBackend();
}
absl::Status ProbeLoadMatrices(Stream&, bool, const std::uint16_t*, Registers4*) { return NoCudaBackend(); }
absl::Status ProbeCopyAsync(Stream&, const std::uint16_t*, const std::uint8_t*, std::uint16_t*) {
  return NoCudaBackend();
}
absl::Status ProbePackPair(Stream&, DType, const float*, std::int64_t, std::uint32_t*) { return NoCudaBackend(); }

}  // namespace cuda
}  // namespace qst
