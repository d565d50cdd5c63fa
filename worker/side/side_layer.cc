#include "worker/side/side_layer.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
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

absl::Status LinearNoBias(const OpContext& ctx, const ConstMatrixView& x, const MatrixView& weight, const MatrixView& y,
                          bool accumulate) {
  return Linear(ctx, x, WeightView::Dense(weight), {}, y, accumulate);
}

// Gradients of y = x W^T: of W always added, of x added or set.
absl::Status LinearNoBiasBackward(const OpContext& ctx, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                                  const MatrixView& weight, const MatrixView& grad_weight, const MatrixView& grad_x,
                                  bool accumulate_x) {
  QST_RETURN_IF_ERROR(LinearBackwardWeight(ctx, grad_y, x, grad_weight, {}, /*accumulate=*/true));
  return LinearBackwardInput(ctx, grad_y, WeightView::Dense(weight), grad_x, accumulate_x);
}

}  // namespace

SideLayerTensors FindSideLayerTensors(std::int64_t layer, TensorSet set, Parameters* parameters) {
  const std::string prefix = absl::StrCat("model.qst_layers.", layer, ".");
  const auto find = [&](const char* suffix) {
    const std::string name = prefix + suffix;
    return set == TensorSet::kValues ? parameters->Value(name) : parameters->Gradient(name);
  };
  SideLayerTensors out;
  out.input_norm = find("input_layernorm.weight");
  out.q = find("self_attn.q_proj.weight");
  out.k = find("self_attn.k_proj.weight");
  out.v = find("self_attn.v_proj.weight");
  out.o = find("self_attn.o_proj.weight");
  out.post_attention_norm = find("post_attention_layernorm.weight");
  out.gate = find("mlp.gate_proj.weight");
  out.up = find("mlp.up_proj.weight");
  out.down = find("mlp.down_proj.weight");
  return out;
}

std::vector<float> RotaryFrequencies(double theta, std::int64_t head_dim) {
  std::vector<float> out(head_dim / 2);
  for (std::size_t j = 0; j < out.size(); ++j) {
    out[j] = static_cast<float>(std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim)));
  }
  return out;
}

absl::Status SideLayerForward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                              const SideSequences& sequences, const MatrixView& x, const SideKvCache* cache,
                              Arena* arena, SideLayerActivations* acts) {
  const std::int64_t num_tokens = x.rows;
  const std::int64_t ds = config.hidden_size;
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  const float eps = config.backbone.norm_eps;
  acts->x = x;
  QST_ASSIGN_OR_RETURN(acts->input_inv_rms, arena->Floats(num_tokens));
  QST_ASSIGN_OR_RETURN(acts->q, arena->Float(num_tokens, ds));
  if (cache == nullptr) {
    QST_ASSIGN_OR_RETURN(acts->k, arena->Float(num_tokens, kv));
    QST_ASSIGN_OR_RETURN(acts->v, arena->Float(num_tokens, kv));
  } else {
    acts->k = Rows(cache->keys, cache->num_tokens, cache->num_tokens + num_tokens);
    acts->v = Rows(cache->values, cache->num_tokens, cache->num_tokens + num_tokens);
  }
  QST_ASSIGN_OR_RETURN(acts->attention, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(acts->log_sum_exp, arena->Floats(num_tokens * config.backbone.num_heads));
  QST_ASSIGN_OR_RETURN(acts->y, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(acts->post_inv_rms, arena->Floats(num_tokens));
  QST_ASSIGN_OR_RETURN(acts->gate, arena->Float(num_tokens, config.intermediate_size));
  QST_ASSIGN_OR_RETURN(acts->up, arena->Float(num_tokens, config.intermediate_size));
  QST_ASSIGN_OR_RETURN(acts->out, arena->Float(num_tokens, ds));
  const ArenaScope scope(arena);

  QST_ASSIGN_OR_RETURN(const MatrixView normed, arena->Float(num_tokens, ds));
  QST_RETURN_IF_ERROR(RmsNorm(ctx, x, values.input_norm, eps, normed, acts->input_inv_rms));
  QST_RETURN_IF_ERROR(LinearNoBias(ctx, normed, values.q, acts->q, false));
  QST_RETURN_IF_ERROR(LinearNoBias(ctx, normed, values.k, acts->k, false));
  QST_RETURN_IF_ERROR(LinearNoBias(ctx, normed, values.v, acts->v, false));
  QST_RETURN_IF_ERROR(
      Rotary(ctx, acts->q, config.backbone.num_heads, sequences.positions, sequences.inv_freq, /*inverse=*/false));
  QST_RETURN_IF_ERROR(
      Rotary(ctx, acts->k, config.backbone.num_kv_heads, sequences.positions, sequences.inv_freq, /*inverse=*/false));
  if (cache == nullptr) {
    QST_RETURN_IF_ERROR(Attention(ctx, ShapeOf(config), acts->q, acts->k, acts->v, sequences.offsets, sequences.offsets,
                                  acts->attention, acts->log_sum_exp));
  } else {
    const std::int64_t num_keys = cache->num_tokens + num_tokens;
    QST_RETURN_IF_ERROR(Attention(ctx, ShapeOf(config), acts->q, Rows(cache->keys, 0, num_keys),
                                  Rows(cache->values, 0, num_keys), sequences.offsets, cache->key_offsets,
                                  acts->attention, acts->log_sum_exp));
  }
  QST_RETURN_IF_ERROR(AddInto(ctx, x, acts->y, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(LinearNoBias(ctx, acts->attention, values.o, acts->y, /*accumulate=*/true));

  QST_RETURN_IF_ERROR(RmsNorm(ctx, acts->y, values.post_attention_norm, eps, normed, acts->post_inv_rms));
  QST_RETURN_IF_ERROR(LinearNoBias(ctx, normed, values.gate, acts->gate, false));
  QST_RETURN_IF_ERROR(LinearNoBias(ctx, normed, values.up, acts->up, false));
  QST_ASSIGN_OR_RETURN(const MatrixView product, arena->Float(num_tokens, config.intermediate_size));
  QST_RETURN_IF_ERROR(SwiGlu(ctx, acts->gate, acts->up, product));
  QST_RETURN_IF_ERROR(AddInto(ctx, acts->y, acts->out, /*accumulate=*/false));
  return LinearNoBias(ctx, product, values.down, acts->out, /*accumulate=*/true);
}

absl::Status SideLayerBackward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                               const SideLayerTensors& gradients, const SideSequences& sequences,
                               const SideLayerActivations& acts, const MatrixView& grad_out, Arena* arena) {
  const ArenaScope scope(arena);
  const std::int64_t num_tokens = grad_out.rows;
  const std::int64_t ds = config.hidden_size;
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  const float eps = config.backbone.norm_eps;
  QST_ASSIGN_OR_RETURN(const MatrixView normed, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_normed, arena->Float(num_tokens, ds));

  {  // out = y + Down(silu(Gate m) * Up m): grad_out turns into the gradient of y.
    const ArenaScope mlp_scope(arena);
    QST_ASSIGN_OR_RETURN(const MatrixView product, arena->Float(num_tokens, config.intermediate_size));
    QST_ASSIGN_OR_RETURN(const MatrixView grad_product, arena->Float(num_tokens, config.intermediate_size));
    QST_ASSIGN_OR_RETURN(const MatrixView grad_gate, arena->Float(num_tokens, config.intermediate_size));
    QST_ASSIGN_OR_RETURN(const MatrixView grad_up, arena->Float(num_tokens, config.intermediate_size));
    QST_RETURN_IF_ERROR(SwiGlu(ctx, acts.gate, acts.up, product));
    QST_RETURN_IF_ERROR(LinearNoBiasBackward(ctx, grad_out, product, values.down, gradients.down, grad_product, false));
    QST_RETURN_IF_ERROR(SwiGluBackward(ctx, grad_product, acts.gate, acts.up, grad_gate, grad_up));
    QST_RETURN_IF_ERROR(RmsNorm(ctx, acts.y, values.post_attention_norm, eps, normed, nullptr));
    QST_RETURN_IF_ERROR(LinearNoBiasBackward(ctx, grad_gate, normed, values.gate, gradients.gate, grad_normed, false));
    QST_RETURN_IF_ERROR(LinearNoBiasBackward(ctx, grad_up, normed, values.up, gradients.up, grad_normed, true));
    QST_RETURN_IF_ERROR(RmsNormBackward(ctx, grad_normed, acts.y, values.post_attention_norm, acts.post_inv_rms,
                                        grad_out, gradients.post_attention_norm, /*accumulate=*/true));
  }

  // y = x + O attention(...): grad_out turns into the gradient of x.
  QST_ASSIGN_OR_RETURN(const MatrixView grad_attention, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_q, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_k, arena->Float(num_tokens, kv));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_v, arena->Float(num_tokens, kv));
  QST_RETURN_IF_ERROR(
      LinearNoBiasBackward(ctx, grad_out, acts.attention, values.o, gradients.o, grad_attention, false));
  QST_RETURN_IF_ERROR(AttentionBackward(ctx, ShapeOf(config), grad_attention, acts.q, acts.k, acts.v, acts.attention,
                                        acts.log_sum_exp, sequences.offsets, grad_q, grad_k, grad_v));
  QST_RETURN_IF_ERROR(
      Rotary(ctx, grad_q, config.backbone.num_heads, sequences.positions, sequences.inv_freq, /*inverse=*/true));
  QST_RETURN_IF_ERROR(
      Rotary(ctx, grad_k, config.backbone.num_kv_heads, sequences.positions, sequences.inv_freq, /*inverse=*/true));
  QST_RETURN_IF_ERROR(RmsNorm(ctx, acts.x, values.input_norm, eps, normed, nullptr));
  QST_RETURN_IF_ERROR(LinearNoBiasBackward(ctx, grad_q, normed, values.q, gradients.q, grad_normed, false));
  QST_RETURN_IF_ERROR(LinearNoBiasBackward(ctx, grad_k, normed, values.k, gradients.k, grad_normed, true));
  QST_RETURN_IF_ERROR(LinearNoBiasBackward(ctx, grad_v, normed, values.v, gradients.v, grad_normed, true));
  return RmsNormBackward(ctx, grad_normed, acts.x, values.input_norm, acts.input_inv_rms, grad_out,
                         gradients.input_norm, /*accumulate=*/true);
}

std::int64_t SideLayerFloatsPerToken(const SideNetworkConfig& config) {
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  return 4 * config.hidden_size + 2 * kv + config.backbone.num_heads + 2 * config.intermediate_size + 2;
}

std::int64_t SideLayerBackwardFloatsPerToken(const SideNetworkConfig& config) {
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  const std::int64_t mlp = 4 * config.intermediate_size;
  const std::int64_t attention = 2 * config.hidden_size + 2 * kv;
  return 2 * config.hidden_size + (mlp > attention ? mlp : attention);
}

}  // namespace qst
