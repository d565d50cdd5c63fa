#include "worker/side/side_attention.h"

#include <cmath>

#include "proto/support/status_macros.h"

namespace qst {
namespace {

AttentionShape ShapeOf(const SideNetworkConfig& config) {
  AttentionShape shape;
  shape.num_heads = config.backbone.num_heads;
  shape.num_kv_heads = config.backbone.num_kv_heads;
  shape.head_dim = config.head_dim;
  shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  return shape;
}

// Turns queries and keys, or their gradients back.
absl::Status Rotate(const OpContext& ctx, const SideNetworkConfig& config, const SideSequences& sequences,
                    const MatrixView& q, const MatrixView& k, bool inverse) {
  if (config.backbone.is_opt()) return absl::OkStatus();
  QST_RETURN_IF_ERROR(Rotary(ctx, q, config.backbone.num_heads, sequences.positions, sequences.inv_freq, inverse));
  return Rotary(ctx, k, config.backbone.num_kv_heads, sequences.positions, sequences.inv_freq, inverse);
}

}  // namespace

SideLinear FindSideLinear(const std::string& name, bool has_bias, TensorSet set, Parameters* parameters) {
  const auto find = [&](const std::string& full_name) {
    return set == TensorSet::kValues ? parameters->Value(full_name) : parameters->Gradient(full_name);
  };
  SideLinear out;
  out.weight = find(name + ".weight");
  if (has_bias) out.bias = find(name + ".bias");
  return out;
}

absl::Status SideLinearForward(const OpContext& ctx, const ConstMatrixView& x, const SideLinear& values,
                               const MatrixView& y, bool accumulate) {
  return Linear(ctx, x, WeightView::Dense(values.weight), values.bias, y, accumulate);
}

absl::Status SideLinearBackward(const OpContext& ctx, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                                const SideLinear& values, const SideLinear& gradients, const MatrixView& grad_x,
                                bool accumulate_x) {
  QST_RETURN_IF_ERROR(LinearBackwardWeight(ctx, grad_y, x, gradients.weight, gradients.bias, /*accumulate=*/true));
  return LinearBackwardInput(ctx, grad_y, WeightView::Dense(values.weight), grad_x, accumulate_x);
}

std::vector<float> RotaryFrequencies(double theta, std::int64_t head_dim) {
  std::vector<float> out(head_dim / 2);
  for (std::size_t j = 0; j < out.size(); ++j) {
    out[j] = static_cast<float>(std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim)));
  }
  return out;
}

absl::Status AllocateSideAttention(const SideNetworkConfig& config, std::int64_t num_tokens, const SideKvCache* cache,
                                   Arena* arena, SideAttentionActivations* acts) {
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  QST_ASSIGN_OR_RETURN(acts->q, arena->Float(num_tokens, config.hidden_size));
  if (cache == nullptr) {
    QST_ASSIGN_OR_RETURN(acts->k, arena->Float(num_tokens, kv));
    QST_ASSIGN_OR_RETURN(acts->v, arena->Float(num_tokens, kv));
  } else {
    acts->k = Rows(cache->keys, cache->num_tokens, cache->num_tokens + num_tokens);
    acts->v = Rows(cache->values, cache->num_tokens, cache->num_tokens + num_tokens);
  }
  QST_ASSIGN_OR_RETURN(acts->attention, arena->Float(num_tokens, config.hidden_size));
  QST_ASSIGN_OR_RETURN(acts->log_sum_exp, arena->Floats(num_tokens * config.backbone.num_heads));
  return absl::OkStatus();
}

absl::Status SideAttentionForward(const OpContext& ctx, const SideNetworkConfig& config,
                                  const SideAttentionTensors& values, const SideSequences& sequences,
                                  const ConstMatrixView& normed, const ConstMatrixView& x, const SideKvCache* cache,
                                  const SideAttentionActivations& acts, const MatrixView& y) {
  QST_RETURN_IF_ERROR(SideLinearForward(ctx, normed, values.q, acts.q, false));
  QST_RETURN_IF_ERROR(SideLinearForward(ctx, normed, values.k, acts.k, false));
  QST_RETURN_IF_ERROR(SideLinearForward(ctx, normed, values.v, acts.v, false));
  QST_RETURN_IF_ERROR(Rotate(ctx, config, sequences, acts.q, acts.k, /*inverse=*/false));
  MatrixView all_keys = acts.k;
  MatrixView all_values = acts.v;
  SequenceOffsets key_offsets = sequences.offsets;
  if (cache != nullptr) {
    const std::int64_t num_keys = cache->num_tokens + x.rows;
    all_keys = Rows(cache->keys, 0, num_keys);
    all_values = Rows(cache->values, 0, num_keys);
    key_offsets = cache->key_offsets;
  }
  QST_RETURN_IF_ERROR(Attention(ctx, ShapeOf(config), acts.q, all_keys, all_values, sequences.offsets, key_offsets,
                                acts.attention, acts.log_sum_exp));
  QST_RETURN_IF_ERROR(AddInto(ctx, x, y, /*accumulate=*/false));
  return SideLinearForward(ctx, acts.attention, values.o, y, /*accumulate=*/true);
}

absl::Status SideAttentionBackward(const OpContext& ctx, const SideNetworkConfig& config,
                                   const SideAttentionTensors& values, const SideAttentionTensors& gradients,
                                   const SideSequences& sequences, const SideAttentionActivations& acts,
                                   const ConstMatrixView& normed, const ConstMatrixView& grad_y,
                                   const MatrixView& grad_normed, Arena* arena) {
  const ArenaScope scope(arena);
  const std::int64_t num_tokens = grad_y.rows;
  const std::int64_t ds = config.hidden_size;
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  QST_ASSIGN_OR_RETURN(const MatrixView grad_attention, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_q, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_k, arena->Float(num_tokens, kv));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_v, arena->Float(num_tokens, kv));
  QST_RETURN_IF_ERROR(SideLinearBackward(ctx, grad_y, acts.attention, values.o, gradients.o, grad_attention, false));
  QST_RETURN_IF_ERROR(AttentionBackward(ctx, ShapeOf(config), grad_attention, acts.q, acts.k, acts.v, acts.attention,
                                        acts.log_sum_exp, sequences.offsets, grad_q, grad_k, grad_v));
  QST_RETURN_IF_ERROR(Rotate(ctx, config, sequences, grad_q, grad_k, /*inverse=*/true));
  QST_RETURN_IF_ERROR(SideLinearBackward(ctx, grad_q, normed, values.q, gradients.q, grad_normed, false));
  QST_RETURN_IF_ERROR(SideLinearBackward(ctx, grad_k, normed, values.k, gradients.k, grad_normed, true));
  return SideLinearBackward(ctx, grad_v, normed, values.v, gradients.v, grad_normed, true);
}

std::int64_t SideAttentionFloatsPerToken(const SideNetworkConfig& config) {
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  return 2 * config.hidden_size + 2 * kv + config.backbone.num_heads;
}

std::int64_t SideAttentionBackwardFloatsPerToken(const SideNetworkConfig& config) {
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  return 2 * config.hidden_size + 2 * kv;
}

}  // namespace qst
