// The kernels behind attention.h, by width of a head and element type. Arguments as there; operands not empty.
#ifndef QST_KERNELS_CUDA_ATTENTION_KERNELS_H_
#define QST_KERNELS_CUDA_ATTENTION_KERNELS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

struct AttentionOperands {
  AttentionShape shape;
  ConstMatrixView q;
  ConstMatrixView k;
  ConstMatrixView v;
  SequenceOffsets q_offsets;
  SequenceOffsets k_offsets;
  MatrixView out;
  float* log_sum_exp;
};

struct AttentionBackwardOperands {
  AttentionShape shape;
  ConstMatrixView grad_out;
  ConstMatrixView q;
  ConstMatrixView k;
  ConstMatrixView v;
  ConstMatrixView out;
  const float* log_sum_exp;
  SequenceOffsets offsets;
  MatrixView grad_q;
  MatrixView grad_k;
  MatrixView grad_v;
};

constexpr std::int64_t kMaxNarrowWidth = 16;
constexpr std::int64_t kMaxHeadWidth = 256;

// Heads of the side network, up to kMaxNarrowWidth: tensor cores, as exact as float32. Operands of any float type.
absl::Status NarrowAttention(Stream& stream, const AttentionOperands& x);
absl::Status NarrowAttentionBackward(Stream& stream, const AttentionBackwardOperands& x);

// Heads of the backbone, up to kMaxHeadWidth: tensor cores. q, k and v all bf16 or all f16; scale above 0.
absl::Status WideAttention(Stream& stream, const AttentionOperands& x);

// Whatever is left, up to kMaxHeadWidth: float32 from end to end.
absl::Status GenericAttention(Stream& stream, const AttentionOperands& x);
absl::Status GenericAttentionBackward(Stream& stream, const AttentionBackwardOperands& x);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_ATTENTION_KERNELS_H_
