#include "worker/side/downsample.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr float kNormEps = 1e-5f;

bool HasInner(const SideNetworkConfig& config) {
  return config.downsample == v1::DOWNSAMPLE_ADAPTER || config.downsample == v1::DOWNSAMPLE_LORA;
}

// Of the projection alone, without the norm.
absl::Status Project(const OpContext& ctx, const SideNetworkConfig& config, const DownsampleTensors& values,
                     const MatrixView& out, Arena* arena, DownsampleActivations* acts) {
  const std::int64_t num_tokens = acts->input.rows;
  switch (config.downsample) {
    case v1::DOWNSAMPLE_ADAPTER: {
      QST_ASSIGN_OR_RETURN(acts->inner, arena->Float(num_tokens, config.rank));
      QST_RETURN_IF_ERROR(Linear(ctx, acts->input, WeightView::Dense(values.a), {}, acts->inner, false));
      const ArenaScope scope(arena);
      QST_ASSIGN_OR_RETURN(const MatrixView activated, arena->Float(num_tokens, config.rank));
      QST_RETURN_IF_ERROR(Activate(ctx, Activation::kSilu, acts->inner, activated));
      return Linear(ctx, activated, WeightView::Dense(values.b), {}, out, false);
    }
    case v1::DOWNSAMPLE_LORA: {
      QST_ASSIGN_OR_RETURN(acts->inner, arena->Float(num_tokens, config.rank));
      QST_RETURN_IF_ERROR(Linear(ctx, acts->input, WeightView::Dense(values.a), {}, acts->inner, false));
      return Linear(ctx, acts->inner, WeightView::Dense(values.b), {}, out, false);
    }
    case v1::DOWNSAMPLE_LINEAR:
      return Linear(ctx, acts->input, WeightView::Dense(values.a), {}, out, false);
    case v1::DOWNSAMPLE_MAXPOOL:
      return PoolColumns(ctx, Pooling::kMax, acts->input, out);
    case v1::DOWNSAMPLE_AVGPOOL:
      return PoolColumns(ctx, Pooling::kAverage, acts->input, out);
    default:
      return absl::InternalError(absl::StrCat("downsample kind ", config.downsample, " is not resolved"));
  }
}

}  // namespace

DownsampleTensors FindDownsampleTensors(const SideNetworkConfig& config, std::int64_t module, TensorSet set,
                                        Parameters* parameters) {
  const std::string prefix = absl::StrCat(config.model_prefix(), "downsample.", module);
  const auto find = [&](const char* suffix) {
    const std::string name = prefix + suffix;
    return set == TensorSet::kValues ? parameters->Value(name) : parameters->Gradient(name);
  };
  DownsampleTensors out;
  if (config.downsample == v1::DOWNSAMPLE_ADAPTER) {
    out.a = find(".adapter_A.weight");
    out.b = find(".adapter_B.weight");
  } else if (config.downsample == v1::DOWNSAMPLE_LORA) {
    out.a = find(".lora_A.weight");
    out.b = find(".lora_B.weight");
  } else if (config.downsample == v1::DOWNSAMPLE_LINEAR) {
    out.a = find(".weight");
  }
  if (config.downsample_norm) {
    out.norm_weight = find(".post_layer_norm.weight");
    out.norm_bias = find(".post_layer_norm.bias");
  }
  return out;
}

absl::Status DownsampleForward(const OpContext& ctx, const SideNetworkConfig& config, const DownsampleTensors& values,
                               const ConstMatrixView& input, Arena* arena, DownsampleActivations* acts) {
  const std::int64_t num_tokens = input.rows;
  acts->input = input;
  QST_ASSIGN_OR_RETURN(acts->out, arena->Float(num_tokens, config.hidden_size));
  if (!config.downsample_norm) return Project(ctx, config, values, acts->out, arena, acts);
  QST_ASSIGN_OR_RETURN(acts->before_norm, arena->Float(num_tokens, config.hidden_size));
  QST_ASSIGN_OR_RETURN(acts->mean, arena->Floats(num_tokens));
  QST_ASSIGN_OR_RETURN(acts->inv_std, arena->Floats(num_tokens));
  QST_RETURN_IF_ERROR(Project(ctx, config, values, acts->before_norm, arena, acts));
  return LayerNorm(ctx, acts->before_norm, values.norm_weight, values.norm_bias, kNormEps, acts->out, acts->mean,
                   acts->inv_std);
}

absl::Status DownsampleBackward(const OpContext& ctx, const SideNetworkConfig& config, const DownsampleTensors& values,
                                const DownsampleTensors& gradients, const DownsampleActivations& acts,
                                const ConstMatrixView& grad_out, Arena* arena) {
  const ArenaScope scope(arena);
  const std::int64_t num_tokens = grad_out.rows;
  ConstMatrixView grad = grad_out;  // of the projection's output
  if (config.downsample_norm) {
    QST_ASSIGN_OR_RETURN(const MatrixView grad_projected, arena->Float(num_tokens, config.hidden_size));
    QST_RETURN_IF_ERROR(LayerNormBackward(ctx, grad_out, acts.before_norm, values.norm_weight, acts.mean, acts.inv_std,
                                          grad_projected, gradients.norm_weight, gradients.norm_bias,
                                          /*accumulate=*/false));
    grad = grad_projected;
  }
  if (config.downsample == v1::DOWNSAMPLE_LINEAR) {
    return LinearBackwardWeight(ctx, grad, acts.input, gradients.a, {}, /*accumulate=*/true);
  }
  if (!HasInner(config)) return absl::OkStatus();
  ConstMatrixView inner_out = acts.inner;
  if (config.downsample == v1::DOWNSAMPLE_ADAPTER) {
    QST_ASSIGN_OR_RETURN(const MatrixView activated, arena->Float(num_tokens, config.rank));
    QST_RETURN_IF_ERROR(Activate(ctx, Activation::kSilu, acts.inner, activated));
    inner_out = activated;
  }
  QST_RETURN_IF_ERROR(LinearBackwardWeight(ctx, grad, inner_out, gradients.b, {}, /*accumulate=*/true));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_inner, arena->Float(num_tokens, config.rank));
  QST_RETURN_IF_ERROR(LinearBackwardInput(ctx, grad, WeightView::Dense(values.b), grad_inner, /*accumulate=*/false));
  if (config.downsample == v1::DOWNSAMPLE_ADAPTER) {
    QST_RETURN_IF_ERROR(ActivateBackward(ctx, Activation::kSilu, grad_inner, acts.inner, grad_inner));
  }
  return LinearBackwardWeight(ctx, grad_inner, acts.input, gradients.a, {}, /*accumulate=*/true);
}

std::int64_t DownsampleFloatsPerToken(const SideNetworkConfig& config) {
  return config.hidden_size * (config.downsample_norm ? 2 : 1) + (config.downsample_norm ? 2 : 0) +
         (HasInner(config) ? config.rank : 0);
}

std::int64_t DownsampleBackwardFloatsPerToken(const SideNetworkConfig& config) {
  return (config.downsample_norm ? config.hidden_size : 0) + (HasInner(config) ? 2 * config.rank : 0);
}

}  // namespace qst
