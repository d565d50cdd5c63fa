// The matrix product behind the cuBLASLt stand-in.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_MATMUL_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_MATMUL_H_

#include <cstdint>

#include "cublasLt.h"

namespace qst::cuda_shim {

// Element (i, j) lies at base + i * row_stride + j * col_stride; sizes and strides in elements.
struct StridedMatrix {
  cudaDataType_t type = CUDA_R_32F;  // CUDA_R_32F, CUDA_R_16F or CUDA_R_16BF
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;
  std::int64_t batch_stride = 0;
};

struct MatmulProblem {
  // d = epilogue(alpha * a * b + beta * c), a [m, k], b [k, n], c and d [m, n], per batch.
  StridedMatrix a;
  StridedMatrix b;
  StridedMatrix c;
  StridedMatrix d;
  std::int64_t batch_count = 1;
  float alpha = 1.0f;
  float beta = 0.0f;  // c is not read if 0
  // Inputs lose all but 10 bits of mantissa, rounded to nearest, ties to even.
  bool round_to_tf32 = false;
  // k is cut into so many parts, each summed by itself; then the parts are added, first to last.
  int split_k = 1;
  bool has_bias = false;
  bool has_relu = false;
  cudaDataType_t bias_type = CUDA_R_32F;
  std::int64_t bias_batch_stride = 0;
};

// Products are summed in float, k ascending, each product and each sum rounded; alpha, beta, bias [m] and ReLU in
// float; one rounding to d's type at the end. d may be c.
void Matmul(const MatmulProblem& problem, const void* a, const void* b, const void* c, const void* bias, void* d);

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_MATMUL_H_
