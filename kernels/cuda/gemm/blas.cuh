// Matrix products by cuBLASLt whose bits do not depend on how many tokens there are. For .cu files.
//
// cuBLASLt picks its algorithm by shape: left alone, a token's result would depend on how many others are in the batch.
// Here the algorithm of a product is chosen once for the shape with a fixed number of tokens, without split-K (one
// chain of additions for each output element, so its bits are those of the tile's own loop), and then used for any
// number of tokens. Where an algorithm does not take a number of tokens, the caller pads the rows: other bits would
// come from another algorithm, never from rows of zeros.
#ifndef QST_KERNELS_CUDA_GEMM_BLAS_CUH_
#define QST_KERNELS_CUDA_GEMM_BLAS_CUH_

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/dtype.h"

namespace qst {
namespace cuda {

// out[m, n] (+)= left[m, k] right[k, n] + bias[n], all row-major; `batch` such products at fixed distances.
struct ProductShape {
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t batch = 1;
  DType factor = DType::kF32;        // of left and right
  DType out = DType::kF32;           // f32, or factor
  bool left_is_transposed = false;   // stored [k, m]
  bool right_is_transposed = false;  // stored [n, k]
  bool has_bias = false;             // of type `out`
};

// Elements between rows, and between the products of a batch. Rows begin on 16 bytes.
struct ProductLayout {
  std::int64_t left_ld = 0, right_ld = 0, out_ld = 0;
  std::int64_t left_stride = 0, right_stride = 0, out_stride = 0;
};

struct ProductOperands {
  const void* left = nullptr;
  const void* right = nullptr;
  const void* bias = nullptr;
  void* out = nullptr;
  bool accumulate = false;
};

// A stream's cuBLASLt workspace and the algorithms that were chosen.
class Blas {
 public:
  explicit Blas(Stream* stream) : stream_(stream) {}
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  absl::Status AllocateWorkspace();

  // Whether the algorithm of `pinned` takes `shape`, which differs from it in the number of tokens (m, k or batch)
  // only. kInternal: there is no algorithm for `pinned`.
  absl::StatusOr<bool> Takes(const ProductShape& pinned, const ProductShape& shape, const ProductLayout& layout);
  // Enqueues a product that Takes.
  absl::Status Multiply(const ProductShape& pinned, const ProductShape& shape, const ProductLayout& layout,
                        const ProductOperands& operands);

 private:
  using Key = std::array<std::int64_t, 10>;
  static Key KeyOf(const ProductShape& shape, bool allow_tf32);
  struct Plan {
    cublasLtMatmulAlgo_t algorithm;
    // The last shape and layout that the algorithm was asked about: within a pass they repeat.
    std::array<std::int64_t, 10> checked = {};
    bool takes_checked = false;
  };
  absl::StatusOr<Plan*> PlanOf(const ProductShape& pinned);

  Stream* const stream_;
  void* workspace_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_BLAS_CUH_
