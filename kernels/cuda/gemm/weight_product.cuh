// Many rows times one weight: x W^T and grad_y W, panel by panel, in types and places that cuBLASLt takes. For .cu
// files.
#ifndef QST_KERNELS_CUDA_GEMM_WEIGHT_PRODUCT_CUH_
#define QST_KERNELS_CUDA_GEMM_WEIGHT_PRODUCT_CUH_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/dtype.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

enum class WeightUse {
  kTransposed,  // out[T, n] (+)= left[T, k] W[n, k]^T + bias[1, n]; a panel of W makes columns of out
  kPlain,       // out[T, k] (+)= left[T, n] W[n, k]; a panel of W takes columns of left; no bias
};

// Factors are rounded to `factor`. At least one row, column and inner element. Scratch memory: gemm/plan.h.
absl::Status MultiplyByWeight(Stream& stream, WeightUse use, DType factor, const ConstMatrixView& left,
                              const WeightView& w, const ConstMatrixView& bias, const MatrixView& out, bool accumulate);

// Hands out pieces of a stream's scratch memory.
class ScratchPieces {
 public:
  explicit ScratchPieces(void* begin) : next_(static_cast<char*>(begin)) {}
  // A matrix with padded rows, of CopyBytes.
  MatrixView Matrix(std::int64_t rows, std::int64_t cols, DType dtype);

 private:
  char* next_;
};

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_WEIGHT_PRODUCT_CUH_
