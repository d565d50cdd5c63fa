#include "worker/side/head.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// What the logits of one chunk may take, and a limit beyond which a matrix product gains nothing from more rows.
struct ChunkLimits {
  std::int64_t logit_bytes;
  std::int64_t max_rows;
};
constexpr ChunkLimits kCpuLimits = {std::int64_t{64} << 20, 512};
constexpr ChunkLimits kCudaLimits = {std::int64_t{256} << 20, 4096};
constexpr std::int64_t kMinChunkRows = 16;

// What MixChunk leaves for backward.
struct ChunkActivations {
  MatrixView backbone;  // [C, e] P norm(h_f[N])
  MatrixView side;      // [C, ds] h_g[N]
  MatrixView normed;    // [C, ds] norm_g(h_g[N])
  NormStatistics statistics;
  MatrixView up;     // [C, e]
  MatrixView mixed;  // [C, e]
};

// What alpha does not multiply, and what it does.
ConstMatrixView Counterpart(const SideNetworkConfig& config, const ChunkActivations& acts) {
  return config.mix_weighs_side ? acts.backbone : acts.up;
}
ConstMatrixView Weighed(const SideNetworkConfig& config, const ChunkActivations& acts) {
  return config.mix_weighs_side ? acts.up : acts.backbone;
}

absl::Status MixChunk(const OpContext& ctx, const SideNetworkConfig& config, const FrozenHead& frozen,
                      const HeadTensors& values, const ConstMatrixView& backbone_last, const ConstMatrixView& side_last,
                      const std::int32_t* rows, std::int64_t num, Arena* arena, ChunkActivations* acts) {
  const std::int64_t e = config.backbone.output_width();
  const std::int64_t ds = config.hidden_size;
  QST_ASSIGN_OR_RETURN(const MatrixView last, arena->Float(num, config.backbone.hidden_size));
  QST_RETURN_IF_ERROR(GatherRows(ctx, backbone_last, rows, last));
  acts->backbone = last;
  if (!frozen.projection.empty()) {
    QST_ASSIGN_OR_RETURN(acts->backbone, arena->Float(num, e));
  }
  QST_RETURN_IF_ERROR(BackboneOutput(ctx, frozen, last, acts->backbone));
  if (!config.has_side_network()) {
    acts->mixed = acts->backbone;
    return absl::OkStatus();
  }
  QST_ASSIGN_OR_RETURN(acts->side, arena->Float(num, ds));
  QST_ASSIGN_OR_RETURN(acts->normed, arena->Float(num, ds));
  QST_ASSIGN_OR_RETURN(acts->statistics, AllocateNormStatistics(config.backbone.final_norm(), num, arena));
  QST_ASSIGN_OR_RETURN(acts->up, arena->Float(num, e));
  QST_ASSIGN_OR_RETURN(acts->mixed, arena->Float(num, e));
  QST_RETURN_IF_ERROR(GatherRows(ctx, side_last, rows, acts->side));
  QST_RETURN_IF_ERROR(NormForward(ctx, config.backbone.final_norm(), acts->side, values.norm.weight, values.norm.bias,
                                  config.backbone.norm_eps, acts->normed, acts->statistics));
  QST_RETURN_IF_ERROR(
      Linear(ctx, acts->normed, WeightView::Dense(values.upsample), values.upsample_bias, acts->up, false));
  return GateMix(ctx, Counterpart(config, *acts), Weighed(config, *acts), values.mix, config.sigmoid_mix, acts->mixed);
}

// From the gradient of the logits down to the side network's last state.
absl::Status ChunkBackward(const OpContext& ctx, const SideNetworkConfig& config, const WeightView& head,
                           const HeadTensors& values, const HeadTensors& gradients, const ChunkActivations& acts,
                           const ConstMatrixView& grad_logits, const std::int32_t* rows, Arena* arena,
                           const MatrixView& grad_side_last) {
  const std::int64_t num = grad_logits.rows;
  const std::int64_t ds = config.hidden_size;
  if (config.has_score_head()) {
    QST_RETURN_IF_ERROR(LinearBackwardWeight(ctx, grad_logits, acts.mixed, gradients.score, {}, /*accumulate=*/true));
  }
  if (!config.has_side_network()) return absl::OkStatus();
  QST_ASSIGN_OR_RETURN(const MatrixView grad_up, arena->Float(num, config.backbone.output_width()));
  QST_RETURN_IF_ERROR(LinearBackwardInput(ctx, grad_logits, head, grad_up, /*accumulate=*/false));
  const MatrixView none;
  QST_RETURN_IF_ERROR(GateMixBackward(ctx, grad_up, Counterpart(config, acts), Weighed(config, acts), values.mix,
                                      config.sigmoid_mix, /*grad_a=*/config.mix_weighs_side ? none : grad_up,
                                      /*grad_b=*/config.mix_weighs_side ? grad_up : none, gradients.mix));
  QST_RETURN_IF_ERROR(LinearBackwardWeight(ctx, grad_up, acts.normed, gradients.upsample, gradients.upsample_bias,
                                           /*accumulate=*/true));
  QST_ASSIGN_OR_RETURN(const MatrixView grad_normed, arena->Float(num, ds));
  QST_RETURN_IF_ERROR(
      LinearBackwardInput(ctx, grad_up, WeightView::Dense(values.upsample), grad_normed, /*accumulate=*/false));
  const NormKind norm = config.backbone.final_norm();
  if (norm == NormKind::kNone) return ScatterAddRows(ctx, grad_normed, rows, grad_side_last);
  QST_ASSIGN_OR_RETURN(const MatrixView grad_side, arena->Float(num, ds));
  QST_RETURN_IF_ERROR(NormBackward(ctx, norm, grad_normed, acts.side, values.norm, acts.statistics, grad_side,
                                   gradients.norm, /*accumulate=*/false));
  return ScatterAddRows(ctx, grad_side, rows, grad_side_last);
}

}  // namespace

absl::Status CheckFrozenHead(const SideNetworkConfig& config, const FrozenHead& frozen) {
  const std::int64_t d = config.backbone.hidden_size;
  const std::int64_t e = config.backbone.output_width();
  const bool has_weight = frozen.norm == NormKind::kRms || !frozen.final_norm.empty();
  const ConstMatrixView& norm = frozen.final_norm;
  if (has_weight && (norm.rows != 1 || norm.cols != d || norm.dtype != DType::kF32)) {
    return absl::InvalidArgumentError(absl::StrCat("side network: final norm is [", norm.rows, ", ", norm.cols, "] ",
                                                   DTypeName(norm.dtype), ", need [1, ", d, "] f32"));
  }
  const WeightView& projection = frozen.projection;
  if (e != d ? projection.rows() != e || projection.cols() != d : !projection.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("side network: projection is [", projection.rows(), ", ",
                                                   projection.cols(), "]; the model's widths are ", d, " and ", e));
  }
  if (!config.has_score_head() &&
      (frozen.lm_head.rows() != config.backbone.vocab_size || frozen.lm_head.cols() != e)) {
    return absl::InvalidArgumentError(absl::StrCat("side network: LM head is [", frozen.lm_head.rows(), ", ",
                                                   frozen.lm_head.cols(), "], need [", config.backbone.vocab_size, ", ",
                                                   e, "]"));
  }
  return absl::OkStatus();
}

absl::Status BackboneOutput(const OpContext& ctx, const FrozenHead& frozen, const MatrixView& states,
                            const MatrixView& out) {
  const bool is_projected = !frozen.projection.empty();
  QST_RETURN_IF_ERROR(NormForward(ctx, frozen.norm, states, frozen.final_norm, frozen.final_norm_bias, frozen.norm_eps,
                                  is_projected ? states : out, {}));
  if (!is_projected) return absl::OkStatus();
  return Linear(ctx, states, frozen.projection, /*bias=*/{}, out, /*accumulate=*/false);
}

HeadTensors FindHeadTensors(const SideNetworkConfig& config, TensorSet set, Parameters* parameters) {
  const auto find = [&](const std::string& name) {
    return set == TensorSet::kValues ? parameters->Value(name) : parameters->Gradient(name);
  };
  HeadTensors out;
  if (config.has_side_network()) {
    const std::string norm = absl::StrCat(config.model_prefix(), config.final_norm_name());
    const NormKind kind = config.backbone.final_norm();
    if (kind == NormKind::kRms || (kind == NormKind::kLayer && config.backbone.has_norm_affine)) {
      out.norm.weight = find(norm + ".weight");
      if (kind == NormKind::kLayer) out.norm.bias = find(norm + ".bias");
    }
    out.upsample = find("upsample.weight");
    if (config.upsample_bias) out.upsample_bias = find("upsample.bias");
    out.mix = find(config.has_score_head() ? "score_z" : "lm_head_z");
  }
  if (config.has_score_head()) out.score = find("score.weight");
  return out;
}

absl::Status RunHead(const OpContext& ctx, const SideNetworkConfig& config, const FrozenHead& frozen,
                     const HeadTensors& values, const HeadTensors& gradients, const HeadArgs& args, Arena* arena,
                     const HeadOutputs& outputs) {
  const std::int64_t num_rows = args.targets.num;
  const WeightView head = config.has_score_head() ? WeightView::Dense(values.score) : frozen.lm_head;
  if (args.want_grad && config.has_side_network()) {
    const MatrixView& grad = args.grad_side_last;
    QST_RETURN_IF_ERROR(FillZero(ctx, grad.data, grad.rows * grad.cols * DTypeBytes(grad.dtype)));
  }
  const std::int64_t chunk_rows = HeadChunkRows(config, ctx.device);
  for (std::int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const ArenaScope scope(arena);
    const std::int64_t num = std::min(chunk_rows, num_rows - begin);
    const std::int32_t* rows = args.targets.rows + begin;
    ChunkActivations acts;
    QST_RETURN_IF_ERROR(
        MixChunk(ctx, config, frozen, values, args.backbone_last, args.side_last, rows, num, arena, &acts));
    MatrixView logits;
    if (outputs.logits.empty()) {
      QST_ASSIGN_OR_RETURN(logits, arena->Float(num, NumOutputs(config)));
    } else {
      logits = Rows(outputs.logits, begin, begin + num);
    }
    QST_RETURN_IF_ERROR(Linear(ctx, acts.mixed, head, {}, logits, false));
    if (config.is_regression()) {
      QST_RETURN_IF_ERROR(SquaredError(ctx, logits, args.targets.values + begin, args.grad_scale, args.want_grad,
                                       outputs.losses + begin));
      QST_RETURN_IF_ERROR(
          FillZero(ctx, outputs.predicted + begin, num * static_cast<std::int64_t>(sizeof(std::int32_t))));
    } else {
      QST_RETURN_IF_ERROR(CrossEntropy(ctx, logits, args.targets.targets + begin, args.grad_scale, args.want_grad,
                                       outputs.losses + begin, outputs.predicted + begin));
    }
    if (args.want_grad) {
      QST_RETURN_IF_ERROR(
          ChunkBackward(ctx, config, head, values, gradients, acts, logits, rows, arena, args.grad_side_last));
    }
  }
  return absl::OkStatus();
}

absl::Status MixedState(const OpContext& ctx, const SideNetworkConfig& config, const FrozenHead& frozen,
                        const HeadTensors& values, const ConstMatrixView& backbone_last,
                        const ConstMatrixView& side_last, const std::int32_t* rows, std::int64_t num, Arena* arena,
                        const MatrixView& out) {
  const ArenaScope scope(arena);
  ChunkActivations acts;
  QST_RETURN_IF_ERROR(MixChunk(ctx, config, frozen, values, backbone_last, side_last, rows, num, arena, &acts));
  return AddInto(ctx, acts.mixed, out, /*accumulate=*/false);
}

std::int64_t NumOutputs(const SideNetworkConfig& config) {
  return config.has_score_head() ? config.num_scores() : config.backbone.vocab_size;
}

std::int64_t HeadChunkRows(const SideNetworkConfig& config, DeviceType device) {
  const ChunkLimits& limits = device == DeviceType::kCuda ? kCudaLimits : kCpuLimits;
  const std::int64_t row_bytes = NumOutputs(config) * static_cast<std::int64_t>(sizeof(float));
  return std::clamp(limits.logit_bytes / row_bytes, kMinChunkRows, limits.max_rows);
}

std::int64_t HeadFloats(const SideNetworkConfig& config, DeviceType device, std::int64_t num_rows) {
  const std::int64_t rows = std::min(num_rows, HeadChunkRows(config, device));
  const std::int64_t d = config.backbone.hidden_size;
  const std::int64_t e = config.backbone.output_width();
  std::int64_t per_row = e == d ? d : d + e;
  if (config.has_side_network()) {
    per_row += 3 * e + 4 * config.hidden_size + NormFloatsPerToken(config.backbone.final_norm());
  }
  return rows * (per_row + NumOutputs(config));
}

}  // namespace qst
