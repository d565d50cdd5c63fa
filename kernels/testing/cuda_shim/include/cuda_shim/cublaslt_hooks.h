// For tests of code that has to cope with what cuBLASLt offers and refuses.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_CUBLASLT_HOOKS_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_CUBLASLT_HOOKS_H_

#include <cstdint>
#include <functional>

namespace qst::cuda_shim {

struct CublasLtHooks {
  // Products [m, k] x [k, n] for which an algorithm, found for another product, does not do: cublasLtMatmulAlgoCheck
  // and cublasLtMatmul with it answer CUBLAS_STATUS_NOT_SUPPORTED. The heuristic answers as ever.
  std::function<bool(std::int64_t m, std::int64_t n, std::int64_t k)> refuses;
  // The heuristic's first answer splits k even if the preference's reduction schemes do not allow it.
  bool always_offers_split_k = false;
};

// Replaces what was set before; a default one means none.
void SetCublasLtHooks(CublasLtHooks hooks);

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_CUBLASLT_HOOKS_H_
