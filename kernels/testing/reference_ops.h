// Plain float64 versions of the ops in kernels/ops.h: the oracles of their tests. Slow, obvious, and checked
// against finite differences themselves.
#ifndef QST_KERNELS_TESTING_REFERENCE_OPS_H_
#define QST_KERNELS_TESTING_REFERENCE_OPS_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/ops.h"
#include "kernels/testing/test_matrix.h"

namespace qst {

using Indices = std::vector<std::int32_t>;

DMatrix ReferenceEmbeddingLookup(const Indices& tokens, const DMatrix& table, const Indices& positions,
                                 const DMatrix& positions_table);

DMatrix ReferenceRmsNorm(const DMatrix& x, const DMatrix& weight, double eps);
struct NormGrads {
  DMatrix x;
  DMatrix weight;
  DMatrix bias;
};
NormGrads ReferenceRmsNormBackward(const DMatrix& grad_y, const DMatrix& x, const DMatrix& weight, double eps);
// Empty weight and bias: no affine part.
DMatrix ReferenceLayerNorm(const DMatrix& x, const DMatrix& weight, const DMatrix& bias, double eps);
NormGrads ReferenceLayerNormBackward(const DMatrix& grad_y, const DMatrix& x, const DMatrix& weight, double eps);

DMatrix ReferenceRotary(const DMatrix& x, std::int64_t num_heads, const Indices& positions,
                        const std::vector<float>& inv_freq, bool inverse);

struct AttentionResult {
  DMatrix out;
  DMatrix log_sum_exp;  // [Tq, num_heads]
};
AttentionResult ReferenceAttention(const AttentionShape& shape, const DMatrix& q, const DMatrix& k, const DMatrix& v,
                                   const Indices& q_offsets, const Indices& k_offsets);
struct AttentionGrads {
  DMatrix q;
  DMatrix k;
  DMatrix v;
};
AttentionGrads ReferenceAttentionBackward(const AttentionShape& shape, const DMatrix& grad_out, const DMatrix& q,
                                          const DMatrix& k, const DMatrix& v, const Indices& offsets);

DMatrix ReferenceActivate(Activation activation, const DMatrix& x);
DMatrix ReferenceActivateBackward(Activation activation, const DMatrix& grad_y, const DMatrix& x);

DMatrix ReferenceSwiGlu(const DMatrix& gate, const DMatrix& up);
struct SwiGluGrads {
  DMatrix gate;
  DMatrix up;
};
SwiGluGrads ReferenceSwiGluBackward(const DMatrix& grad_y, const DMatrix& gate, const DMatrix& up);

DMatrix ReferenceGateMix(const DMatrix& a, const DMatrix& b, const DMatrix& mix, bool apply_sigmoid);
struct GateMixGrads {
  DMatrix a;
  DMatrix b;
  DMatrix mix;
};
GateMixGrads ReferenceGateMixBackward(const DMatrix& grad_out, const DMatrix& a, const DMatrix& b, const DMatrix& mix,
                                      bool apply_sigmoid);

DMatrix ReferenceGatherRows(const DMatrix& x, const Indices& indices);
DMatrix ReferenceScatterAddRows(const DMatrix& grad_y, const Indices& indices, const DMatrix& grad_x);
DMatrix ReferencePoolColumns(Pooling pooling, const DMatrix& x, std::int64_t cols);

struct LossResult {
  DMatrix losses;  // [1, T]
  DMatrix grad;    // scale * d(sum of losses)/d(logits)
  Indices argmax;
};
LossResult ReferenceCrossEntropy(const DMatrix& logits, const Indices& targets, double scale);

// x [T, 1], targets [1, T]. No argmax.
LossResult ReferenceSquaredError(const DMatrix& x, const DMatrix& targets, double scale);

// One step on vectors [1, n]; param, exp_avg and exp_avg_sq are updated.
void ReferenceAdamW(const AdamWParams& params, const DMatrix& grad, DMatrix* param, DMatrix* exp_avg,
                    DMatrix* exp_avg_sq);
double ReferenceSumOfSquares(const DMatrix& x);

// Sum over all elements of weight * value: a scalar whose gradient by `value` is `weight`.
double WeightedSum(const DMatrix& weight, const DMatrix& value);
// Gradient of f at x by central differences, one element at a time.
DMatrix NumericalGradient(const std::function<double(const DMatrix& x)>& f, const DMatrix& x);

}  // namespace qst

#endif  // QST_KERNELS_TESTING_REFERENCE_OPS_H_
