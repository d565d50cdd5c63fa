#include <algorithm>
#include <cstdint>

#include "proto/support/status_macros.h"
#include "worker/side/side_layer.h"

namespace qst {
namespace {

constexpr NormKind kNorm = NormKind::kLayer;

absl::Status Norm(const OpContext& ctx, const SideNetworkConfig& config, const NormTensors& values,
                  const ConstMatrixView& x, const MatrixView& y, const NormStatistics& statistics) {
  return NormForward(ctx, kNorm, x, values.weight, values.bias, config.backbone.norm_eps, y, statistics);
}

// out = y + W2 act(W1 input).
absl::Status MlpForward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                        const ConstMatrixView& input, const ConstMatrixView& y, const MatrixView& up,
                        const MatrixView& out, Arena* arena) {
  QST_RETURN_IF_ERROR(SideLinearForward(ctx, input, values.up, up, false));
  QST_ASSIGN_OR_RETURN(const MatrixView active, arena->Float(input.rows, config.intermediate_size));
  QST_RETURN_IF_ERROR(Activate(ctx, config.backbone.activation, up, active));
  QST_RETURN_IF_ERROR(AddInto(ctx, y, out, /*accumulate=*/false));
  return SideLinearForward(ctx, active, values.down, out, /*accumulate=*/true);
}

// grad_input is set, or added to.
absl::Status MlpBackward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                         const SideLayerTensors& gradients, const ConstMatrixView& grad_out,
                         const ConstMatrixView& input, const MatrixView& up, const MatrixView& grad_input,
                         bool accumulate, Arena* arena) {
  const ArenaScope scope(arena);
  QST_ASSIGN_OR_RETURN(const MatrixView active, arena->Float(input.rows, config.intermediate_size));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_active, arena->Float(input.rows, config.intermediate_size));
  QST_RETURN_IF_ERROR(Activate(ctx, config.backbone.activation, up, active));
  QST_RETURN_IF_ERROR(SideLinearBackward(ctx, grad_out, active, values.down, gradients.down, grad_active, false));
  QST_RETURN_IF_ERROR(ActivateBackward(ctx, config.backbone.activation, grad_active, up, grad_active));
  return SideLinearBackward(ctx, grad_active, input, values.up, gradients.up, grad_input, accumulate);
}

}  // namespace

absl::Status AllocateOptSideLayer(const SideNetworkConfig& config, const MatrixView& x, const SideKvCache* cache,
                                  Arena* arena, SideLayerActivations* acts) {
  const std::int64_t num_tokens = x.rows;
  const std::int64_t ds = config.hidden_size;
  acts->x = x;
  QST_ASSIGN_OR_RETURN(acts->attention_norm, AllocateNormStatistics(kNorm, num_tokens, arena));
  QST_RETURN_IF_ERROR(AllocateSideAttention(config, num_tokens, cache, arena, &acts->attention));
  QST_ASSIGN_OR_RETURN(acts->y, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(acts->mlp_norm, AllocateNormStatistics(kNorm, num_tokens, arena));
  QST_ASSIGN_OR_RETURN(acts->up, arena->Float(num_tokens, config.intermediate_size));
  QST_ASSIGN_OR_RETURN(acts->out, arena->Float(num_tokens, ds));
  if (!config.backbone.is_post_norm) return absl::OkStatus();
  QST_ASSIGN_OR_RETURN(acts->before_attention_norm, arena->Float(num_tokens, ds));
  QST_ASSIGN_OR_RETURN(acts->before_mlp_norm, arena->Float(num_tokens, ds));
  return absl::OkStatus();
}

absl::Status OptSideLayerForward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                                 const SideSequences& sequences, const SideKvCache* cache,
                                 const SideLayerActivations& acts, Arena* arena) {
  const MatrixView& x = acts.x;
  const ArenaScope scope(arena);
  if (config.backbone.is_post_norm) {
    QST_RETURN_IF_ERROR(SideAttentionForward(ctx, config, values.attention, sequences, x, x, cache, acts.attention,
                                             acts.before_attention_norm));
    QST_RETURN_IF_ERROR(
        Norm(ctx, config, values.attention_norm, acts.before_attention_norm, acts.y, acts.attention_norm));
    QST_RETURN_IF_ERROR(MlpForward(ctx, config, values, acts.y, acts.y, acts.up, acts.before_mlp_norm, arena));
    return Norm(ctx, config, values.mlp_norm, acts.before_mlp_norm, acts.out, acts.mlp_norm);
  }
  QST_ASSIGN_OR_RETURN(const MatrixView normed, arena->Float(x.rows, config.hidden_size));
  QST_RETURN_IF_ERROR(Norm(ctx, config, values.attention_norm, x, normed, acts.attention_norm));
  QST_RETURN_IF_ERROR(
      SideAttentionForward(ctx, config, values.attention, sequences, normed, x, cache, acts.attention, acts.y));
  QST_RETURN_IF_ERROR(Norm(ctx, config, values.mlp_norm, acts.y, normed, acts.mlp_norm));
  return MlpForward(ctx, config, values, normed, acts.y, acts.up, acts.out, arena);
}

absl::Status OptSideLayerBackward(const OpContext& ctx, const SideNetworkConfig& config, const SideLayerTensors& values,
                                  const SideLayerTensors& gradients, const SideSequences& sequences,
                                  const SideLayerActivations& acts, const MatrixView& grad_out, Arena* arena) {
  const ArenaScope scope(arena);
  const std::int64_t num_tokens = grad_out.rows;
  QST_ASSIGN_OR_RETURN(const MatrixView normed, arena->Float(num_tokens, config.hidden_size));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_normed, arena->Float(num_tokens, config.hidden_size));
  if (config.backbone.is_post_norm) {
    // grad_normed is the gradient of what a norm reads, which is also that of the residual stream beside the block.
    QST_RETURN_IF_ERROR(NormBackward(ctx, kNorm, grad_out, acts.before_mlp_norm, values.mlp_norm, acts.mlp_norm,
                                     grad_normed, gradients.mlp_norm, /*accumulate=*/false));
    QST_RETURN_IF_ERROR(AddInto(ctx, grad_normed, grad_out, /*accumulate=*/false));
    QST_RETURN_IF_ERROR(MlpBackward(ctx, config, values, gradients, grad_normed, acts.y, acts.up, grad_out,
                                    /*accumulate=*/true, arena));
    QST_RETURN_IF_ERROR(NormBackward(ctx, kNorm, grad_out, acts.before_attention_norm, values.attention_norm,
                                     acts.attention_norm, grad_normed, gradients.attention_norm, /*accumulate=*/false));
    QST_RETURN_IF_ERROR(SideAttentionBackward(ctx, config, values.attention, gradients.attention, sequences,
                                              acts.attention, acts.x, grad_normed, grad_out, arena));
    return AddInto(ctx, grad_normed, grad_out, /*accumulate=*/true);
  }
  QST_RETURN_IF_ERROR(Norm(ctx, config, values.mlp_norm, acts.y, normed, {}));
  QST_RETURN_IF_ERROR(
      MlpBackward(ctx, config, values, gradients, grad_out, normed, acts.up, grad_normed, /*accumulate=*/false, arena));
  QST_RETURN_IF_ERROR(NormBackward(ctx, kNorm, grad_normed, acts.y, values.mlp_norm, acts.mlp_norm, grad_out,
                                   gradients.mlp_norm, /*accumulate=*/true));
  QST_RETURN_IF_ERROR(Norm(ctx, config, values.attention_norm, acts.x, normed, {}));
  QST_RETURN_IF_ERROR(SideAttentionBackward(ctx, config, values.attention, gradients.attention, sequences,
                                            acts.attention, normed, grad_out, grad_normed, arena));
  return NormBackward(ctx, kNorm, grad_normed, acts.x, values.attention_norm, acts.attention_norm, grad_out,
                      gradients.attention_norm, /*accumulate=*/true);
}

std::int64_t OptSideLayerFloatsPerToken(const SideNetworkConfig& config) {
  const std::int64_t states = config.backbone.is_post_norm ? 4 : 2;
  return states * config.hidden_size + SideAttentionFloatsPerToken(config) + config.intermediate_size +
         2 * NormFloatsPerToken(kNorm);
}

std::int64_t OptSideLayerBackwardFloatsPerToken(const SideNetworkConfig& config) {
  return 2 * config.hidden_size + std::max(2 * config.intermediate_size, SideAttentionBackwardFloatsPerToken(config));
}

}  // namespace qst
