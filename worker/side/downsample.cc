#include "worker/side/downsample.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr float kNormEps = 1e-5f;

bool HasInner(const SideNetworkConfig& config) {
  return config.downsample == v1::DOWNSAMPLE_ADAPTER || config.downsample == v1::DOWNSAMPLE_LORA;
}

// What comes before the norm, or out.
const MatrixView& Projected(const SideNetworkConfig& config, const DownsampleActivations& acts) {
  return config.downsample_norm ? acts.before_norm : acts.out;
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

absl::Status AllocateDownsample(const SideNetworkConfig& config, std::int64_t num_rows, Arena* arena,
                                DownsampleActivations* acts) {
  QST_ASSIGN_OR_RETURN(acts->out, arena->Float(num_rows, config.hidden_size));
  if (config.downsample_norm) {
    QST_ASSIGN_OR_RETURN(acts->before_norm, arena->Float(num_rows, config.hidden_size));
    QST_ASSIGN_OR_RETURN(acts->mean, arena->Floats(num_rows));
    QST_ASSIGN_OR_RETURN(acts->inv_std, arena->Floats(num_rows));
  }
  if (HasInner(config)) {
    QST_ASSIGN_OR_RETURN(acts->inner, arena->Float(num_rows, config.rank));
  }
  return absl::OkStatus();
}

absl::Status DownsampleInput(const OpContext& ctx, const SideNetworkConfig& config, const DownsampleTensors& values,
                             const ConstMatrixView& input, DownsampleActivations* acts) {
  acts->input = input;
  const MatrixView& result = HasInner(config) ? acts->inner : Projected(config, *acts);
  const MatrixView rows = Rows(result, 0, input.rows);
  if (result.rows > input.rows) {
    const MatrixView rest = Rows(result, input.rows, result.rows);
    QST_RETURN_IF_ERROR(FillZero(ctx, rest.data, rest.rows * rest.cols * DTypeBytes(rest.dtype)));
  }
  switch (config.downsample) {
    case v1::DOWNSAMPLE_ADAPTER:
    case v1::DOWNSAMPLE_LORA:
    case v1::DOWNSAMPLE_LINEAR:
      return Linear(ctx, input, WeightView::Dense(values.a), {}, rows, /*accumulate=*/false);
    case v1::DOWNSAMPLE_MAXPOOL:
      return PoolColumns(ctx, Pooling::kMax, input, rows);
    case v1::DOWNSAMPLE_AVGPOOL:
      return PoolColumns(ctx, Pooling::kAverage, input, rows);
    default:
      return absl::InternalError(absl::StrCat("downsample kind ", config.downsample, " is not resolved"));
  }
}

absl::Status DownsampleRest(const OpContext& ctx, const SideNetworkConfig& config, const DownsampleTensors& values,
                            const DownsampleActivations& acts, Arena* arena) {
  if (HasInner(config)) {
    const ArenaScope scope(arena);
    ConstMatrixView inner = acts.inner;
    if (config.downsample == v1::DOWNSAMPLE_ADAPTER) {
      QST_ASSIGN_OR_RETURN(const MatrixView activated, arena->Float(acts.inner.rows, config.rank));
      QST_RETURN_IF_ERROR(Activate(ctx, Activation::kSilu, acts.inner, activated));
      inner = activated;
    }
    QST_RETURN_IF_ERROR(
        Linear(ctx, inner, WeightView::Dense(values.b), {}, Projected(config, acts), /*accumulate=*/false));
  }
  if (!config.downsample_norm) return absl::OkStatus();
  return LayerNorm(ctx, acts.before_norm, values.norm_weight, values.norm_bias, kNormEps, acts.out, acts.mean,
                   acts.inv_std);
}

absl::Status DownsampleForward(const OpContext& ctx, const SideNetworkConfig& config, const DownsampleTensors& values,
                               const ConstMatrixView& input, Arena* arena, DownsampleActivations* acts) {
  QST_RETURN_IF_ERROR(AllocateDownsample(config, input.rows, arena, acts));
  QST_RETURN_IF_ERROR(DownsampleInput(ctx, config, values, input, acts));
  return DownsampleRest(ctx, config, values, *acts, arena);
}

absl::Status DownsampleBackward(const OpContext& ctx, const SideNetworkConfig& config, const DownsampleTensors& values,
                                const DownsampleTensors& gradients, const DownsampleActivations& acts,
                                const ConstMatrixView& grad_out, const MatrixView& room, Arena* arena) {
  ConstMatrixView grad = grad_out;  // of the projection's output
  if (config.downsample_norm) {
    QST_RETURN_IF_ERROR(LayerNormBackward(ctx, grad_out, acts.before_norm, values.norm_weight, acts.mean, acts.inv_std,
                                          room, gradients.norm_weight, gradients.norm_bias, /*accumulate=*/false));
    grad = room;
  }
  if (!HasInner(config)) return absl::OkStatus();
  const ArenaScope scope(arena);
  const std::int64_t num_rows = grad_out.rows;
  const bool is_adapter = config.downsample == v1::DOWNSAMPLE_ADAPTER;
  ConstMatrixView inner_out = acts.inner;
  MatrixView grad_inner = acts.inner;
  if (is_adapter) {
    QST_ASSIGN_OR_RETURN(const MatrixView activated, arena->Float(num_rows, config.rank));
    QST_RETURN_IF_ERROR(Activate(ctx, Activation::kSilu, acts.inner, activated));
    inner_out = activated;
    QST_ASSIGN_OR_RETURN(grad_inner, arena->Float(num_rows, config.rank));
  }
  QST_RETURN_IF_ERROR(LinearBackwardWeight(ctx, grad, inner_out, gradients.b, {}, /*accumulate=*/true));
  QST_RETURN_IF_ERROR(LinearBackwardInput(ctx, grad, WeightView::Dense(values.b), grad_inner, /*accumulate=*/false));
  return is_adapter ? ActivateBackward(ctx, Activation::kSilu, grad_inner, acts.inner, acts.inner) : absl::OkStatus();
}

ConstMatrixView GradOfProduct(const SideNetworkConfig& config, const DownsampleActivations& acts,
                              const ConstMatrixView& grad_out, const ConstMatrixView& room) {
  if (HasInner(config)) return acts.inner;
  if (config.downsample != v1::DOWNSAMPLE_LINEAR) return ConstMatrixView();
  return config.downsample_norm ? room : grad_out;
}

absl::Status DownsampleBackwardInput(const OpContext& ctx, const DownsampleTensors& gradients,
                                     const ConstMatrixView& input, const ConstMatrixView& grad_product) {
  if (grad_product.empty()) return absl::OkStatus();
  return LinearBackwardWeight(ctx, Rows(grad_product, 0, input.rows), input, gradients.a, {}, /*accumulate=*/true);
}

std::int64_t DownsampleFloatsPerToken(const SideNetworkConfig& config) {
  return config.hidden_size * (config.downsample_norm ? 2 : 1) + (config.downsample_norm ? 2 : 0) +
         (HasInner(config) ? config.rank : 0);
}

std::int64_t DownsampleBackwardFloatsPerToken(const SideNetworkConfig& config) {
  return HasInner(config) ? 2 * config.rank : 0;
}

}  // namespace qst
