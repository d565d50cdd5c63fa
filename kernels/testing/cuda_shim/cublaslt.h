// What the parts of the cuBLASLt stand-in share: its objects, its checks, what an algorithm is.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_CUBLASLT_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_CUBLASLT_H_

#include <cstddef>
#include <cstdint>

#include "cublasLt.h"
#include "kernels/testing/cuda_shim/matmul.h"

struct cublasLtContext {
  int device;
};

struct cublasLtMatmulDescOpaque_t {
  std::int32_t compute_type;
  std::int32_t scale_type;
  std::int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  std::int32_t trans_a = CUBLAS_OP_N;
  std::int32_t trans_b = CUBLAS_OP_N;
  std::int32_t trans_c = CUBLAS_OP_N;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  std::int64_t bias_batch_stride = 0;
  std::int32_t sm_count_target = 0;
  std::int32_t bias_type = -1;  // that of D
};

struct cublasLtMatrixLayoutOpaque_t {
  std::uint32_t type;
  std::int32_t order = CUBLASLT_ORDER_COL;
  std::uint64_t rows;
  std::uint64_t cols;
  std::int64_t ld;
  std::int32_t batch_count = 1;
  std::int64_t batch_stride = 0;
};

// Of A, B, C, D, in bytes.
struct cublasLtAlignments {
  std::uint32_t bytes[4] = {256, 256, 256, 256};
};

struct cublasLtMatmulPreferenceOpaque_t {
  std::uint64_t max_workspace_bytes = 0;
  std::uint32_t reduction_schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
  cublasLtAlignments alignments;
};

namespace qst::cuda_shim {

inline constexpr int kNumConfigAttributes = 9;

// What an initialised cublasLtMatmulAlgo_t holds.
struct Algo {
  std::uint32_t config[kNumConfigAttributes];  // by cublasLtMatmulAlgoConfigAttributes_t
  std::uint32_t workspace_bytes;
  std::uint16_t alignment_bytes[4];  // that it was promised
  std::uint32_t mark;                // of an initialised one

  int split_k() const { return static_cast<int>(config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM]); }
};

// False if it is not initialised.
bool Decode(const cublasLtMatmulAlgo_t* from, Algo& algo);

// Whether hooks make the algorithm refuse the product.
bool HooksRefuse(const MatmulProblem& problem);

bool IsSupportedType(std::int64_t type);

// Checks that the product is one that cuBLASLt has and this stand-in covers, and describes it; without alpha, beta.
cublasStatus_t Describe(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                        cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, MatmulProblem& problem);

// As everywhere in cuBLASLt: with no bytes to write to, only says how many are needed.
cublasStatus_t GetAttribute(const void* field, std::size_t field_bytes, void* value, std::size_t bytes,
                            std::size_t* written);

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_CUBLASLT_H_
