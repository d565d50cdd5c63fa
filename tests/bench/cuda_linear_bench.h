// Speed of the 4-bit linear layers on a GPU.
#ifndef QST_TESTS_BENCH_CUDA_LINEAR_BENCH_H_
#define QST_TESTS_BENCH_CUDA_LINEAR_BENCH_H_

#include "absl/status/status.h"

namespace qst {

// Measures on GPU `ordinal` and prints one JSON object a line: name, shape, value, unit, ratio.
//   copy_bandwidth   what the device copies in its memory (bytes read and written): the ceiling of memory
//   matmul_bf16      a cuBLASLt product of 8192^3: the ceiling of tensor cores
//   dequantize_bf16  NF4 with double quantization to bf16; ratio to copy_bandwidth
//   linear_nf4       Linear with bf16 in and out at LLaMA-2's shapes "T x n x k"; ratio to a bf16 product of the same
//   shape
//                    by cuBLASLt's first choice (above 1: faster)
//   read_nf4         for few tokens: the rate at which linear_nf4 reads the weight; ratio to copy_bandwidth
// Times are by CUDA events, the median of 20 windows; weights rotate through more memory than a cache holds.
absl::Status RunCudaLinearBench(int ordinal);

}  // namespace qst

#endif  // QST_TESTS_BENCH_CUDA_LINEAR_BENCH_H_
