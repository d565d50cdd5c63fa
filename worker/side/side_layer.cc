#include "worker/side/side_layer.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

SideLayerTensors FindOptTensors(const SideNetworkConfig& config, const std::string& prefix, TensorSet set,
                                Parameters* parameters) {
  const auto norm = [&](const char* name) {
    const SideLinear found = FindSideLinear(prefix + name, /*has_bias=*/true, set, parameters);
    return NormTensors{found.weight, found.bias};
  };
  const auto linear = [&](const char* name) {
    return FindSideLinear(prefix + name, config.backbone.has_bias, set, parameters);
  };
  SideLayerTensors out;
  if (config.backbone.has_norm_affine) {
    out.attention_norm = norm("self_attn_layer_norm");
    if (!config.frozen_mlp_norm) out.mlp_norm = norm("final_layer_norm");
  }
  out.attention = {linear("self_attn.q_proj"), linear("self_attn.k_proj"), linear("self_attn.v_proj"),
                   linear("self_attn.out_proj")};
  out.up = linear("fc1");
  out.down = linear("fc2");
  return out;
}

}  // namespace

SideLayerTensors FindSideLayerTensors(const SideNetworkConfig& config, std::int64_t layer, TensorSet set,
                                      Parameters* parameters) {
  const std::string prefix = absl::StrCat(config.model_prefix(), "qst_layers.", layer, ".");
  if (config.backbone.is_opt()) return FindOptTensors(config, prefix, set, parameters);
  const auto linear = [&](const char* name) {
    return FindSideLinear(prefix + name, /*has_bias=*/false, set, parameters);
  };
  SideLayerTensors out;
  out.attention_norm.weight = linear("input_layernorm").weight;
  out.mlp_norm.weight = linear("post_attention_layernorm").weight;
  out.attention = {linear("self_attn.q_proj"), linear("self_attn.k_proj"), linear("self_attn.v_proj"),
                   linear("self_attn.o_proj")};
  out.gate = linear("mlp.gate_proj");
  out.up = linear("mlp.up_proj");
  out.down = linear("mlp.down_proj");
  return out;
}

absl::Status AllocateSideLayer(const SideNetworkConfig& config, const MatrixView& x, const SideKvCache* cache,
                               Arena* arena, SideLayerActivations* acts) {
  if (config.backbone.is_opt()) return AllocateOptSideLayer(config, x, cache, arena, acts);
  const std::int64_t num_tokens = x.rows;
  const std::int64_t ds = config.hidden_size;
  acts->x = x;
  QST_ASSIGN_OR_RETURN(acts->attention_norm, AllocateNormStatistics(NormKind::kRms, num_tokens, arena));
  QST_RETURN_IF_ERROR(AllocateSideAttention(config, num_tokens, cache, arena, &acts->attention));
  QST_ASSIGN_OR_RETURN(acts->y, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(acts->mlp_norm, AllocateNormStatistics(NormKind::kRms, num_tokens, arena));
  QST_ASSIGN_OR_RETURN(acts->gate, arena->Float(num_tokens, config.intermediate_size));
  QST_ASSIGN_OR_RETURN(acts->up, arena->Float(num_tokens, config.intermediate_size));
  QST_ASSIGN_OR_RETURN(acts->out, arena->Float(num_tokens, ds));
  return absl::OkStatus();
}

absl::Status SideLayerForward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                              const SideSequences& sequences, const SideKvCache* cache,
                              const SideLayerActivations& acts, Arena* arena) {
  if (config.backbone.is_opt()) return OptSideLayerForward(ctx, config, values, sequences, cache, acts, arena);
  const ArenaScope scope(arena);
  const std::int64_t num_tokens = acts.x.rows;
  const std::int64_t ds = config.hidden_size;
  const float eps = config.backbone.norm_eps;

  QST_ASSIGN_OR_RETURN(const MatrixView normed, arena->Float(num_tokens, ds));
  QST_RETURN_IF_ERROR(
      NormForward(ctx, NormKind::kRms, acts.x, values.attention_norm.weight, {}, eps, normed, acts.attention_norm));
  QST_RETURN_IF_ERROR(
      SideAttentionForward(ctx, config, values.attention, sequences, normed, acts.x, cache, acts.attention, acts.y));

  QST_RETURN_IF_ERROR(NormForward(ctx, NormKind::kRms, acts.y, values.mlp_norm.weight, {}, eps, normed, acts.mlp_norm));
  QST_RETURN_IF_ERROR(SideLinearForward(ctx, normed, values.gate, acts.gate, false));
  QST_RETURN_IF_ERROR(SideLinearForward(ctx, normed, values.up, acts.up, false));
  QST_ASSIGN_OR_RETURN(const MatrixView product, arena->Float(num_tokens, config.intermediate_size));
  QST_RETURN_IF_ERROR(SwiGlu(ctx, acts.gate, acts.up, product));
  QST_RETURN_IF_ERROR(AddInto(ctx, acts.y, acts.out, /*accumulate=*/false));
  return SideLinearForward(ctx, product, values.down, acts.out, /*accumulate=*/true);
}

absl::Status SideLayerBackward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                               const SideLayerTensors& gradients, const SideSequences& sequences,
                               const SideLayerActivations& acts, const MatrixView& grad_out, Arena* arena) {
  if (config.backbone.is_opt()) {
    return OptSideLayerBackward(ctx, config, values, gradients, sequences, acts, grad_out, arena);
  }
  const ArenaScope scope(arena);
  const std::int64_t num_tokens = grad_out.rows;
  const std::int64_t ds = config.hidden_size;
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
    QST_RETURN_IF_ERROR(SideLinearBackward(ctx, grad_out, product, values.down, gradients.down, grad_product, false));
    QST_RETURN_IF_ERROR(SwiGluBackward(ctx, grad_product, acts.gate, acts.up, grad_gate, grad_up));
    QST_RETURN_IF_ERROR(NormForward(ctx, NormKind::kRms, acts.y, values.mlp_norm.weight, {}, eps, normed, {}));
    QST_RETURN_IF_ERROR(SideLinearBackward(ctx, grad_gate, normed, values.gate, gradients.gate, grad_normed, false));
    QST_RETURN_IF_ERROR(SideLinearBackward(ctx, grad_up, normed, values.up, gradients.up, grad_normed, true));
    QST_RETURN_IF_ERROR(NormBackward(ctx, NormKind::kRms, grad_normed, acts.y, values.mlp_norm, acts.mlp_norm, grad_out,
                                     gradients.mlp_norm, /*accumulate=*/true));
  }

  // y = x + O attention(n): grad_out turns into the gradient of x.
  QST_RETURN_IF_ERROR(NormForward(ctx, NormKind::kRms, acts.x, values.attention_norm.weight, {}, eps, normed, {}));
  QST_RETURN_IF_ERROR(SideAttentionBackward(ctx, config, values.attention, gradients.attention, sequences,
                                            acts.attention, normed, grad_out, grad_normed, arena));
  return NormBackward(ctx, NormKind::kRms, grad_normed, acts.x, values.attention_norm, acts.attention_norm, grad_out,
                      gradients.attention_norm, /*accumulate=*/true);
}

std::int64_t SideLayerFloatsPerToken(const SideNetworkConfig& config) {
  if (config.backbone.is_opt()) return OptSideLayerFloatsPerToken(config);
  return 2 * config.hidden_size + SideAttentionFloatsPerToken(config) + 2 * config.intermediate_size +
         2 * NormFloatsPerToken(NormKind::kRms);
}

std::int64_t SideLayerBackwardFloatsPerToken(const SideNetworkConfig& config) {
  if (config.backbone.is_opt()) return OptSideLayerBackwardFloatsPerToken(config);
  return 2 * config.hidden_size + std::max(4 * config.intermediate_size, SideAttentionBackwardFloatsPerToken(config));
}

}  // namespace qst
