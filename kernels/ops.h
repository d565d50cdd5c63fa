// Everything a backend offers. Each op checks shapes and dtypes, then dispatches on ctx.device.
//
// Conventions
//   T packed tokens of a micro-batch (sequences one after another, no padding), d hidden width.
//   Outputs may not alias inputs unless said. All arithmetic is float32 with one fixed reduction order per output
//   element, which depends neither on the number of threads nor on which other rows are in the batch.
//   `accumulate` adds to the output instead of overwriting it.
// On CPU an op has run to completion when it returns, and refuses indices, targets and offsets that are out of range.
// On CUDA
//   - it is enqueued on ctx.stream and returns: all of its memory must stay as it is until the stream is past it;
//   - every pointer is memory that the stream's device reaches: matrices, vectors, indices, positions, offsets,
//     targets, frequencies, and single numbers that come out. The host looks at none of their values, so whoever
//     uploads indices has checked them; one out of range is undefined behaviour;
//   - an op that fails while it runs is reported by a later call on the stream (cuda::Synchronize at the latest).
// Dtypes: f32 unless said. On CUDA these may also be bf16 or f16: x and y of a norm; x of Rotary; y of Linear; the
// matrices of attention; both operands of AddInto; a, b and out of GateMix, each f32 or one and the same 16-bit type;
// the result of EmbeddingLookup, GatherRows and PoolColumns, if it has the type of what it comes from; the operands of
// Activate, SwiGlu and their backward ops, if all have one type. Arithmetic is float32 all the same and rounds once,
// when it stores. Parameters, statistics and all other gradients are f32.
// Errors: kInvalidArgument for shapes or dtypes that disagree (message says which), kUnimplemented for a dtype or
// device that this build does not have.
#ifndef QST_KERNELS_OPS_H_
#define QST_KERNELS_OPS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace qst {

// Packed sequences: sequence s covers rows [offsets[s], offsets[s + 1]). offsets has num + 1 entries,
// starting at 0 and never falling; empty sequences are allowed.
struct SequenceOffsets {
  const std::int32_t* offsets = nullptr;
  std::int64_t num = 0;
};

// ---- Linear layers (linear) -----------------------------------------------------------------------

// y[T, n] (+)= x[T, k] W[n, k]^T + bias[n].
// x f32, f16 or bf16; w f32, f16, bf16, NF4 or FP4 (unpacked panel by panel: the whole weight is never
// held in float); bias f32 [1, n] or empty; y f32, on CUDA also f16 or bf16. On CUDA factors are rounded to a half type
// unless w is f32 (kernels/cuda/linear.h).
[[nodiscard]] absl::Status Linear(const OpContext& ctx, const ConstMatrixView& x, const WeightView& w,
                                  const ConstMatrixView& bias, const MatrixView& y, bool accumulate);

// grad_x[T, k] (+)= grad_y[T, n] W[n, k]. Weight dtypes as in Linear.
[[nodiscard]] absl::Status LinearBackwardInput(const OpContext& ctx, const ConstMatrixView& grad_y, const WeightView& w,
                                               const MatrixView& grad_x, bool accumulate);

// grad_w[n, k] (+)= grad_y[T, n]^T x[T, k]; grad_bias[1, n] (+)= sum over T of grad_y, if not empty.
// x f32, f16 or bf16. Sums run over T in ascending order.
[[nodiscard]] absl::Status LinearBackwardWeight(const OpContext& ctx, const ConstMatrixView& grad_y,
                                                const ConstMatrixView& x, const MatrixView& grad_w,
                                                const MatrixView& grad_bias, bool accumulate);

// ---- Embedding (embedding) ------------------------------------------------------------------------

// y[t] = table[tokens[t]], and + positions_table[positions[t]] if that table is not empty.
// Tables f32, f16 or bf16. kInvalidArgument for an index outside its table.
[[nodiscard]] absl::Status EmbeddingLookup(const OpContext& ctx, const std::int32_t* tokens, std::int64_t num_tokens,
                                           const ConstMatrixView& table, const std::int32_t* positions,
                                           const ConstMatrixView& positions_table, const MatrixView& y);

// ---- Norms (norm) ---------------------------------------------------------------------------------

// y = x / sqrt(mean(x^2) + eps) * weight. weight [1, d] (f32). inv_rms [T] is filled if not null; the
// backward op needs it. x may be bf16 or f16. y may alias x.
[[nodiscard]] absl::Status RmsNorm(const OpContext& ctx, const ConstMatrixView& x, const ConstMatrixView& weight,
                                   float eps, const MatrixView& y, float* inv_rms);
// grad_x (+)= ..., grad_weight [1, d] always accumulates (null view: skipped, for frozen weights).
[[nodiscard]] absl::Status RmsNormBackward(const OpContext& ctx, const ConstMatrixView& grad_y,
                                           const ConstMatrixView& x, const ConstMatrixView& weight,
                                           const float* inv_rms, const MatrixView& grad_x,
                                           const MatrixView& grad_weight, bool accumulate);

// y = (x - mean) / sqrt(var + eps) * weight + bias. weight, bias [1, d], or both empty (no affine part).
// mean, inv_std [T] are filled if not null. x may be bf16 or f16. y may alias x.
[[nodiscard]] absl::Status LayerNorm(const OpContext& ctx, const ConstMatrixView& x, const ConstMatrixView& weight,
                                     const ConstMatrixView& bias, float eps, const MatrixView& y, float* mean,
                                     float* inv_std);
// grad_weight and grad_bias accumulate, and are skipped if empty.
[[nodiscard]] absl::Status LayerNormBackward(const OpContext& ctx, const ConstMatrixView& grad_y,
                                             const ConstMatrixView& x, const ConstMatrixView& weight, const float* mean,
                                             const float* inv_std, const MatrixView& grad_x,
                                             const MatrixView& grad_weight, const MatrixView& grad_bias,
                                             bool accumulate);

// ---- Rotary embedding (rotary) --------------------------------------------------------------------

// Rotates, in place, every head of x [T, num_heads * head_dim] by its token's position. Half-split layout
// (Hugging Face): dimension j pairs with j + head_dim / 2, angle = position * inv_freq[j], inv_freq
// [head_dim / 2] given by the caller. `inverse` rotates back, which is also the backward pass. Angles are
// computed in float64, cos and sin rounded to float32.
[[nodiscard]] absl::Status Rotary(const OpContext& ctx, const MatrixView& x, std::int64_t num_heads,
                                  const std::int32_t* positions, const float* inv_freq, bool inverse);

// ---- Attention (attention) ------------------------------------------------------------------------

// Causal attention over packed sequences with grouped queries and an online softmax: nothing of
// size T x T is ever stored.
struct AttentionShape {
  std::int64_t num_heads = 0;     // query heads
  std::int64_t num_kv_heads = 0;  // divides num_heads
  std::int64_t head_dim = 0;      // any width >= 1; 4, 5 and 8 (side network) as fast as 64
  float scale = 0.0f;             // usually 1 / sqrt(head_dim)
  std::int64_t window = 0;        // a query sees the last so many keys, its own included; 0: all. Forward only
};
// q [Tq, num_heads * head_dim], k and v [Tk, num_kv_heads * head_dim], out as q. Query row i of sequence s
// (0-based inside the sequence) sees key rows 0 ... Lk(s) - Lq(s) + i: equal offsets give plain causal
// attention; longer key sequences are a KV cache. A window leaves the last `window` of these. kInvalidArgument if
// Lk(s) < Lq(s).
// log_sum_exp [Tq, num_heads] is filled if not null; the backward op needs it.
[[nodiscard]] absl::Status Attention(const OpContext& ctx, const AttentionShape& shape, const ConstMatrixView& q,
                                     const ConstMatrixView& k, const ConstMatrixView& v,
                                     const SequenceOffsets& q_offsets, const SequenceOffsets& k_offsets,
                                     const MatrixView& out, float* log_sum_exp);
// Same offsets for queries and keys. Overwrites grad_q, grad_k, grad_v. Probabilities are recomputed. kUnimplemented
// with a window, which only frozen layers have.
[[nodiscard]] absl::Status AttentionBackward(const OpContext& ctx, const AttentionShape& shape,
                                             const ConstMatrixView& grad_out, const ConstMatrixView& q,
                                             const ConstMatrixView& k, const ConstMatrixView& v,
                                             const ConstMatrixView& out, const float* log_sum_exp,
                                             const SequenceOffsets& offsets, const MatrixView& grad_q,
                                             const MatrixView& grad_k, const MatrixView& grad_v);

// ---- Elementwise (elementwise) --------------------------------------------------------------------

enum class Activation : std::uint8_t { kIdentity, kRelu, kSilu, kGelu };

// y = activation(x). y may alias x.
[[nodiscard]] absl::Status Activate(const OpContext& ctx, Activation activation, const ConstMatrixView& x,
                                    const MatrixView& y);
// grad_x = grad_y * activation'(x). grad_x may alias grad_y or x.
[[nodiscard]] absl::Status ActivateBackward(const OpContext& ctx, Activation activation, const ConstMatrixView& grad_y,
                                            const ConstMatrixView& x, const MatrixView& grad_x);

// y = silu(gate) * up. y may alias gate or up.
[[nodiscard]] absl::Status SwiGlu(const OpContext& ctx, const ConstMatrixView& gate, const ConstMatrixView& up,
                                  const MatrixView& y);
[[nodiscard]] absl::Status SwiGluBackward(const OpContext& ctx, const ConstMatrixView& grad_y,
                                          const ConstMatrixView& gate, const ConstMatrixView& up,
                                          const MatrixView& grad_gate, const MatrixView& grad_up);

// out = (1 - m) * a + m * b with m = sigmoid(mix) if apply_sigmoid, else m = mix. mix is f32, [1, 1] (one
// value for all channels) or [1, cols]. out may alias a or b. Used for the layer gates (a = down, b = side
// state; section 3.2 of the QST paper) and for the output mix (a = up(...), b = backbone; equation 5).
[[nodiscard]] absl::Status GateMix(const OpContext& ctx, const ConstMatrixView& a, const ConstMatrixView& b,
                                   const ConstMatrixView& mix, bool apply_sigmoid, const MatrixView& out);
// grad_a = (1 - m) * grad_out, grad_b = m * grad_out (each skipped if empty; either may alias grad_out, if
// only that one is wanted or grad_a aliases it), grad_mix accumulates d/d(mix), summed over rows in order
// (skipped if empty).
[[nodiscard]] absl::Status GateMixBackward(const OpContext& ctx, const ConstMatrixView& grad_out,
                                           const ConstMatrixView& a, const ConstMatrixView& b,
                                           const ConstMatrixView& mix, bool apply_sigmoid, const MatrixView& grad_a,
                                           const MatrixView& grad_b, const MatrixView& grad_mix);

// y (+)= x, any float dtypes (also a cast; rounds to nearest even).
[[nodiscard]] absl::Status AddInto(const OpContext& ctx, const ConstMatrixView& x, const MatrixView& y,
                                   bool accumulate);

// y[i] = x[indices[i]] and its reverse grad_x[indices[i]] += grad_y[i] (indices distinct). x any float dtype.
[[nodiscard]] absl::Status GatherRows(const OpContext& ctx, const ConstMatrixView& x, const std::int32_t* indices,
                                      const MatrixView& y);
[[nodiscard]] absl::Status ScatterAddRows(const OpContext& ctx, const ConstMatrixView& grad_y,
                                          const std::int32_t* indices, const MatrixView& grad_x);

// Pools the columns of x [T, d] to y [T, ds]: column j of y is the mean or the maximum of columns
// [j * d / ds, (j + 1) * d / ds). x f32, f16 or bf16. The input is frozen, so there is no backward op.
enum class Pooling : std::uint8_t { kMax, kAverage };
[[nodiscard]] absl::Status PoolColumns(const OpContext& ctx, Pooling pooling, const ConstMatrixView& x,
                                       const MatrixView& y);

// ---- Rows on the wire (wire) ----------------------------------------------------------------------

// x [T, d] (f32, f16 or bf16) as it travels, into WireBytes(wire, T, d) bytes at `out`, and back. Types and layout:
// wire_rows.h. Every backend and instruction set writes the same bytes. y f32, f16 or bf16. `out` and `in` are aligned
// to 16 bytes.
[[nodiscard]] absl::Status EncodeRows(const OpContext& ctx, const ConstMatrixView& x, DType wire, void* out);
[[nodiscard]] absl::Status DecodeRows(const OpContext& ctx, const void* in, DType wire, const MatrixView& y);

// ---- Loss (loss) ----------------------------------------------------------------------------------

// Softmax cross-entropy. logits [T, V] are overwritten with scale * d(sum of losses)/d(logits) if
// want_grad. targets [T] in [0, V). losses [T] receives -log p(target) (not scaled); argmax [T] the first
// index of the largest logit, if not null.
[[nodiscard]] absl::Status CrossEntropy(const OpContext& ctx, const MatrixView& logits, const std::int32_t* targets,
                                        float scale, bool want_grad, float* losses, std::int32_t* argmax);

// Squared error. predictions [T, 1] are overwritten with scale * d(sum of losses)/d(predictions) if want_grad. targets
// [T]. losses [T] receives (prediction - target)^2 (not scaled).
[[nodiscard]] absl::Status SquaredError(const OpContext& ctx, const MatrixView& predictions, const float* targets,
                                        float scale, bool want_grad, float* losses);

// ---- Optimizer (optimizer) ------------------------------------------------------------------------

// AdamW with decoupled weight decay over one flat buffer of n elements:
//   m = b1 m + (1 - b1) g s;  v = b2 v + (1 - b2) (g s)^2
//   p = p - lr * (m / (1 - b1^step) / (sqrt(v / (1 - b2^step)) + eps) + weight_decay * p)
struct AdamWParams {
  float learning_rate = 0.0f;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0.0f;
  float grad_scale = 1.0f;  // s above, unless the gradients are clipped
  std::int64_t step = 1;    // counts from 1
  // Clipping where the op runs, so that no norm has to come back to the host: with *sum_of_squares that of all
  // gradients of the step (what SumOfSquares made of them, unscaled; this range may be a part of them),
  //   s = grad_scale * min(1, clip_norm / sqrt(*sum_of_squares))   in float64, rounded once
  // where clip_norm 0 stands for no limit. If the root is not finite, param, exp_avg and exp_avg_sq stay as they are.
  // Null: s = grad_scale. Memory of the device that the op runs on.
  const double* sum_of_squares = nullptr;
  double clip_norm = 0.0;
};
[[nodiscard]] absl::Status AdamW(const OpContext& ctx, const AdamWParams& params, std::int64_t n, float* param,
                                 const float* grad, float* exp_avg, float* exp_avg_sq);

// *sum = sum of x[i]^2 in float64, in one fixed order. On CUDA sum is device memory.
[[nodiscard]] absl::Status SumOfSquares(const OpContext& ctx, const float* x, std::int64_t n, double* sum);

}  // namespace qst

#endif  // QST_KERNELS_OPS_H_
