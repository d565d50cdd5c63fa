#include "worker/side/side_network.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

bool IsFinite(const ConstMatrixView& m) {
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.cols; ++j) {
      float value = 0.0f;
      if (m.dtype == DType::kF32) {
        value = m.row<float>(i)[j];
      } else if (m.dtype == DType::kBF16) {
        value = BF16ToF32(m.row<std::uint16_t>(i)[j]);
      } else if (m.dtype == DType::kF16) {
        value = F16ToF32(m.row<std::uint16_t>(i)[j]);
      }
      if (!std::isfinite(value)) return false;
    }
  }
  return true;
}

// Positions of packed tokens inside their sequences.
void FillPositions(const std::vector<std::int32_t>& offsets, std::vector<std::int32_t>* positions) {
  positions->resize(offsets.back());
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    for (std::int32_t t = offsets[s]; t < offsets[s + 1]; ++t) (*positions)[t] = t - offsets[s];
  }
}

}  // namespace

SideNetwork::SideNetwork(SideNetworkConfig config, const FrozenHead& frozen)
    : config_(std::move(config)), frozen_(frozen), parameters_(ParameterLayout(config_)) {
  head_values_ = FindHeadTensors(config_, TensorSet::kValues, &parameters_);
  head_gradients_ = FindHeadTensors(config_, TensorSet::kGradients, &parameters_);
  if (!config_.has_side_network()) return;
  for (std::int64_t i = 0; i < config_.num_downsample_modules(); ++i) {
    downsample_values_.push_back(FindDownsampleTensors(config_, i, TensorSet::kValues, &parameters_));
    downsample_gradients_.push_back(FindDownsampleTensors(config_, i, TensorSet::kGradients, &parameters_));
  }
  for (std::int64_t i = 0; i < config_.backbone.num_layers; ++i) {
    layer_values_.push_back(FindSideLayerTensors(i, TensorSet::kValues, &parameters_));
    layer_gradients_.push_back(FindSideLayerTensors(i, TensorSet::kGradients, &parameters_));
    gate_values_.push_back(parameters_.Value(absl::StrCat("model.z.", i)));
    gate_gradients_.push_back(parameters_.Gradient(absl::StrCat("model.z.", i)));
  }
  inv_freq_ = RotaryFrequencies(config_.backbone.rope_theta, config_.head_dim);
  activations_.resize(config_.backbone.num_layers);
}

absl::StatusOr<std::unique_ptr<SideNetwork>> SideNetwork::Create(SideNetworkConfig config, const FrozenHead& frozen,
                                                                 std::uint64_t seed) {
  const std::int64_t d = config.backbone.hidden_size;
  if (frozen.final_norm.rows != 1 || frozen.final_norm.cols != d || frozen.final_norm.dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat("side network: final norm is [", frozen.final_norm.rows, ", ",
                                                   frozen.final_norm.cols, "] ", DTypeName(frozen.final_norm.dtype),
                                                   ", need [1, ", d, "] f32"));
  }
  if (!config.is_classification() &&
      (frozen.lm_head.rows() != config.backbone.vocab_size || frozen.lm_head.cols() != d)) {
    return absl::InvalidArgumentError(absl::StrCat("side network: LM head is [", frozen.lm_head.rows(), ", ",
                                                   frozen.lm_head.cols(), "], need [", config.backbone.vocab_size,
                                                   ", ", d, "]"));
  }
  auto network = absl::WrapUnique(new SideNetwork(std::move(config), frozen));
  network->parameters_.Initialise(seed);
  return network;
}

absl::Status SideNetwork::CheckBatch(const SideBatch& batch) const {
  const bool offsets_ok = batch.offsets.size() >= 2 && batch.offsets.front() == 0 &&
                          std::is_sorted(batch.offsets.begin(), batch.offsets.end());
  if (!offsets_ok) return absl::InvalidArgumentError("side network: sequence offsets must start at 0 and never fall");
  if (batch.rows.size() != batch.targets.size()) {
    return absl::InvalidArgumentError(absl::StrCat("side network: ", batch.rows.size(), " rows but ",
                                                   batch.targets.size(), " targets"));
  }
  for (std::size_t i = 0; i < batch.rows.size(); ++i) {
    if (batch.rows[i] < (i == 0 ? 0 : batch.rows[i - 1] + 1) || batch.rows[i] >= batch.num_tokens()) {
      return absl::InvalidArgumentError(absl::StrCat("side network: row ", batch.rows[i], " of target ", i,
                                                     " is out of order or not below ", batch.num_tokens()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ConstMatrixView> SideNetwork::FetchState(const HiddenStateSource& hidden_states, std::int64_t layer,
                                                        std::int64_t num_tokens) const {
  QST_ASSIGN_OR_RETURN(const ConstMatrixView state, hidden_states(layer));
  if (state.rows != num_tokens || state.cols != config_.backbone.hidden_size) {
    return absl::InvalidArgumentError(absl::StrCat("side network: hidden state of layer ", layer, " is [", state.rows,
                                                   ", ", state.cols, "], need [", num_tokens, ", ",
                                                   config_.backbone.hidden_size, "]"));
  }
  return state;
}

absl::Status SideNetwork::ForwardLayer(const OpContext& ctx, std::int64_t layer, const ConstMatrixView& hidden_state,
                                       const MatrixView& before, const SideSequences& sequences,
                                       LayerActivations* acts) {
  acts->side_before = before;
  QST_RETURN_IF_ERROR(
      DownsampleForward(ctx, config_, downsample_values(layer), hidden_state, &arena_, &acts->down));
  acts->mixed = arena_.Float(hidden_state.rows, config_.hidden_size);
  QST_RETURN_IF_ERROR(
      GateMix(ctx, acts->down.out, before, gate_value(layer), /*apply_sigmoid=*/true, acts->mixed));
  return SideLayerForward(ctx, config_, layer_values(layer), sequences, acts->mixed, /*cache=*/nullptr, &arena_,
                          &acts->layer);
}

absl::Status SideNetwork::Evaluate(const OpContext& ctx, const SideBatch& batch,
                                   const HiddenStateSource& hidden_states, Predictions* predictions,
                                   const SideStateSink& sink) {
  QST_RETURN_IF_ERROR(CheckBatch(batch));
  const std::int64_t num_tokens = batch.num_tokens();
  const std::int64_t num_layers = config_.backbone.num_layers;
  has_activations_ = false;
  arena_.Reset();
  HeadArgs args;
  if (config_.has_side_network()) {
    FillPositions(batch.offsets, &positions_);
    const SideSequences sequences{{batch.offsets.data(), static_cast<std::int64_t>(batch.offsets.size()) - 1},
                                  positions_.data(),
                                  inv_freq_.data()};
    // One state is kept; what a layer needs besides is given back after it.
    const MatrixView state = arena_.Float(num_tokens, config_.hidden_size);
    for (std::int64_t layer = 0; layer <= num_layers; ++layer) {
      QST_ASSIGN_OR_RETURN(const ConstMatrixView hidden, FetchState(hidden_states, layer, num_tokens));
      const ArenaScope scope(&arena_);
      LayerActivations acts;
      if (layer == 0) {
        QST_RETURN_IF_ERROR(DownsampleForward(ctx, config_, downsample_values(0), hidden, &arena_, &acts.down));
      } else {
        QST_RETURN_IF_ERROR(ForwardLayer(ctx, layer, hidden, state, sequences, &acts));
      }
      QST_RETURN_IF_ERROR(
          AddInto(ctx, layer == 0 ? acts.down.out : acts.layer.out, state, /*accumulate=*/false));
      if (sink) sink(layer, state);
      args.backbone_last = hidden;
    }
    args.side_last = state;
  } else {
    QST_ASSIGN_OR_RETURN(args.backbone_last, FetchState(hidden_states, num_layers, num_tokens));
  }
  args.targets = {batch.rows.data(), batch.targets.data(), static_cast<std::int64_t>(batch.rows.size())};
  return RunHead(ctx, config_, frozen_, head_values_, head_gradients_, args, &arena_, predictions);
}

absl::Status SideNetwork::AccumulateGradients(const OpContext& ctx, const SideBatch& batch,
                                              const HiddenStateSource& hidden_states, float grad_scale,
                                              Predictions* predictions, const SideStateSink& sink) {
  QST_RETURN_IF_ERROR(CheckBatch(batch));
  const std::int64_t num_tokens = batch.num_tokens();
  const std::int64_t num_layers = config_.backbone.num_layers;
  has_activations_ = false;
  arena_.Reset();
  HeadArgs args;
  args.targets = {batch.rows.data(), batch.targets.data(), static_cast<std::int64_t>(batch.rows.size())};
  args.want_grad = true;
  args.grad_scale = grad_scale;
  if (!config_.has_side_network()) {
    QST_ASSIGN_OR_RETURN(args.backbone_last, FetchState(hidden_states, num_layers, num_tokens));
    backbone_last_ = args.backbone_last;
    has_activations_ = true;
    return RunHead(ctx, config_, frozen_, head_values_, head_gradients_, args, &arena_, predictions);
  }

  FillPositions(batch.offsets, &positions_);
  const SideSequences sequences{{batch.offsets.data(), static_cast<std::int64_t>(batch.offsets.size()) - 1},
                                positions_.data(),
                                inv_freq_.data()};
  QST_ASSIGN_OR_RETURN(ConstMatrixView hidden, FetchState(hidden_states, 0, num_tokens));
  QST_RETURN_IF_ERROR(DownsampleForward(ctx, config_, downsample_values(0), hidden, &arena_, &first_down_));
  MatrixView state = first_down_.out;
  if (sink) sink(0, state);
  for (std::int64_t layer = 1; layer <= num_layers; ++layer) {
    QST_ASSIGN_OR_RETURN(hidden, FetchState(hidden_states, layer, num_tokens));
    LayerActivations& acts = activations_[layer - 1];
    QST_RETURN_IF_ERROR(ForwardLayer(ctx, layer, hidden, state, sequences, &acts));
    state = acts.layer.out;
    if (sink) sink(layer, state);
  }
  backbone_last_ = hidden;
  has_activations_ = true;

  args.backbone_last = hidden;
  args.side_last = state;
  args.grad_side_last = arena_.Float(num_tokens, config_.hidden_size);
  QST_RETURN_IF_ERROR(RunHead(ctx, config_, frozen_, head_values_, head_gradients_, args, &arena_, predictions));
  if (batch.rows.empty()) return absl::OkStatus();
  return BackwardLayers(ctx, sequences, args.grad_side_last);
}

absl::Status SideNetwork::BackwardLayers(const OpContext& ctx, const SideSequences& sequences,
                                         const MatrixView& grad_last) {
  // `grad` is the gradient of h_g[layer], then of the layer's input, then of its downsampled half; that of h_g[layer-1]
  // goes to `grad_before`.
  MatrixView grad = grad_last;
  MatrixView grad_before = arena_.Float(grad_last.rows, grad_last.cols);
  for (std::int64_t layer = config_.backbone.num_layers; layer >= 1; --layer) {
    const LayerActivations& acts = activations_[layer - 1];
    QST_RETURN_IF_ERROR(SideLayerBackward(ctx, config_, layer_values_[layer - 1], layer_gradients_[layer - 1],
                                          sequences, acts.layer, grad, &arena_));
    QST_RETURN_IF_ERROR(GateMixBackward(ctx, grad, acts.down.out, acts.side_before, gate_value(layer),
                                        /*apply_sigmoid=*/true, /*grad_a=*/grad, grad_before,
                                        gate_gradients_[layer - 1]));
    QST_RETURN_IF_ERROR(DownsampleBackward(ctx, config_, downsample_values(layer),
                                           downsample_gradients_[config_.downsample_module(layer)], acts.down, grad,
                                           &arena_));
    std::swap(grad, grad_before);
  }
  return DownsampleBackward(ctx, config_, downsample_values(0), downsample_gradients_[0], first_down_, grad, &arena_);
}

std::string SideNetwork::DescribeNonFinite() const {
  if (!has_activations_) return "an unknown place";
  if (config_.has_side_network()) {
    if (!IsFinite(first_down_.input)) return "the backbone's hidden state of layer 0";
    if (!IsFinite(first_down_.out)) return "downsample module 0";
    for (std::size_t i = 0; i < activations_.size(); ++i) {
      const LayerActivations& acts = activations_[i];
      if (!IsFinite(acts.down.input)) return absl::StrCat("the backbone's hidden state of layer ", i + 1);
      if (!IsFinite(acts.down.out)) return absl::StrCat("the downsample module of layer ", i + 1);
      if (!IsFinite(acts.layer.out)) return absl::StrCat("side layer ", i + 1);
    }
  } else if (!IsFinite(backbone_last_)) {
    return absl::StrCat("the backbone's hidden state of layer ", config_.backbone.num_layers);
  }
  return "the output";
}

SideMemory EstimateSideMemory(const SideNetworkConfig& config, std::int64_t num_tokens) {
  std::int64_t num_parameters = 0;
  for (const ParameterInfo& info : ParameterLayout(config)) num_parameters += info.num_elems();
  std::int64_t per_token = 0;
  std::int64_t backward_per_token = 0;
  if (config.has_side_network()) {
    const std::int64_t down = DownsampleFloatsPerToken(config);
    per_token = down + config.backbone.num_layers *
                           (down + config.hidden_size + SideLayerFloatsPerToken(config));
    backward_per_token = 2 * config.hidden_size + SideLayerBackwardFloatsPerToken(config);
  }
  SideMemory memory;
  memory.parameter_bytes = 2 * num_parameters * 4;
  memory.optimizer_bytes = 2 * num_parameters * 4;
  // Head and layers' backward follow each other; a token may have one target row.
  const std::int64_t on_top = std::max(HeadFloats(config, num_tokens), backward_per_token * num_tokens);
  memory.activation_bytes = 4 * (per_token * num_tokens + on_top);
  return memory;
}

}  // namespace qst
