// Optimizer kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_OPTIMIZER_KERNELS_H_
#define QST_KERNELS_CPU_OPTIMIZER_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

// AdamWParams with everything that depends on the step alone worked out.
struct AdamWFactors {
  float learning_rate;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float epsilon;
  float weight_decay;
  float grad_scale;
  float correction1;  // 1 / (1 - beta1^step)
  float correction2;  // 1 / (1 - beta2^step)
};

// A range of elements, in two instruction sets.
#define QST_OPTIMIZER_KERNELS                                                                             \
  void AdamWRange(const AdamWFactors& f, std::int64_t n, float* param, const float* grad, float* exp_avg, \
                  float* exp_avg_sq);                                                                     \
  double SumOfSquaresRange(const float* x, std::int64_t n);

namespace portable {
QST_OPTIMIZER_KERNELS
}  // namespace portable
namespace avx2 {
QST_OPTIMIZER_KERNELS
}  // namespace avx2
#undef QST_OPTIMIZER_KERNELS

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_OPTIMIZER_KERNELS_H_
