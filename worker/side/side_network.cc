#include "worker/side/side_network.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/side/host_matrix.h"
#include "worker/side/side_memory.h"

namespace qst {

SideNetwork::SideNetwork(const OpContext& ctx, SideNetworkConfig config, const FrozenHead& frozen,
                         std::unique_ptr<Parameters> parameters)
    : ctx_(ctx),
      config_(std::move(config)),
      frozen_(frozen),
      parameters_(std::move(parameters)),
      arena_(ctx),
      graphs_(ctx, &arena_) {
  head_values_ = FindHeadTensors(config_, TensorSet::kValues, parameters_.get());
  head_gradients_ = FindHeadTensors(config_, TensorSet::kGradients, parameters_.get());
  if (!config_.has_side_network()) return;
  for (std::int64_t i = 0; i < config_.num_downsample_modules(); ++i) {
    downsample_values_.push_back(FindDownsampleTensors(config_, i, TensorSet::kValues, parameters_.get()));
    downsample_gradients_.push_back(FindDownsampleTensors(config_, i, TensorSet::kGradients, parameters_.get()));
  }
  for (std::int64_t i = 0; i < config_.backbone.num_layers; ++i) {
    layer_values_.push_back(FindSideLayerTensors(config_, i, TensorSet::kValues, parameters_.get()));
    layer_gradients_.push_back(FindSideLayerTensors(config_, i, TensorSet::kGradients, parameters_.get()));
    const std::string gate = absl::StrCat(config_.model_prefix(), "z.", i);
    gate_values_.push_back(parameters_->Value(gate));
    gate_gradients_.push_back(parameters_->Gradient(gate));
  }
  activations_.resize(config_.backbone.num_layers);
}

SideNetwork::~SideNetwork() { Synchronize(ctx_).IgnoreError(); }

absl::StatusOr<std::unique_ptr<SideNetwork>> SideNetwork::Create(const OpContext& ctx, SideNetworkConfig config,
                                                                 const FrozenHead& frozen, std::uint64_t seed) {
  QST_RETURN_IF_ERROR(CheckFrozenHead(config, frozen));
  QST_ASSIGN_OR_RETURN(std::unique_ptr<Parameters> parameters, Parameters::Create(ctx, ParameterLayout(config)));
  QST_RETURN_IF_ERROR(parameters->Initialise(seed));
  auto network = absl::WrapUnique(new SideNetwork(ctx, std::move(config), frozen, std::move(parameters)));
  if (network->config_.has_side_network() && !network->config_.backbone.is_opt()) {
    const std::vector<float> inv_freq =
        RotaryFrequencies(network->config_.backbone.rope_theta, network->config_.head_dim);
    QST_ASSIGN_OR_RETURN(
        network->inv_freq_,
        DeviceMemory::CopyOf(ctx, inv_freq.data(), static_cast<std::int64_t>(inv_freq.size() * sizeof(float))));
  }
  return network;
}

void SideNetwork::UseGraphs(std::int64_t max_tokens) {
  if (ctx_.device == DeviceType::kCuda && DeviceGraphsAreWanted()) graph_max_tokens_ = max_tokens;
}

absl::StatusOr<DeviceBatch> SideNetwork::Begin(const SideBatch& batch, bool want_grad) {
  has_activations_ = false;
  predictions_.Clear();
  QST_RETURN_IF_ERROR(CheckBatch(batch, NumOutputs(config_), config_.is_regression()));
  const bool uses_graphs =
      want_grad && graph_max_tokens_ > 0 && config_.has_side_network() && !graphs_.stats().is_failed;
  const BatchShape shape = uses_graphs ? RoundedShapeOf(batch, graph_max_tokens_) : ShapeOf(batch);
  // Evaluation gives most of its memory back layer by layer: it grows to what it needs, which is less.
  QST_RETURN_IF_ERROR(
      arena_.Reset(want_grad ? SideActivationFloats(config_, ctx_.device, shape.num_tokens, batch.num_targets()) : 0));
  QST_ASSIGN_OR_RETURN(const DeviceBatch uploaded, UploadBatch(ctx_, batch, shape, &arena_));
  const std::int64_t num_scores = config_.has_score_head() && !want_grad ? config_.num_scores() : 0;
  // Training takes as much whatever the number of targets, so that the layers' memory always lies at the same place.
  QST_RETURN_IF_ERROR(predictions_.Allocate(batch.num_targets(), num_scores, config_.is_regression(),
                                            want_grad ? shape.num_tokens : 0, &arena_));
  // A unit for the forward pass of each layer, which waits for its hidden state, and one for the whole backward pass.
  // The head stays outside: few launches, of large kernels, that depend on grad_scale and the number of targets.
  if (uses_graphs) {
    graphs_.Select(shape, static_cast<std::size_t>(config_.backbone.num_layers) + 1);
  } else {
    graphs_.Deselect();
  }
  return uploaded;
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

absl::Status SideNetwork::BeginLayer(std::int64_t layer, const ConstMatrixView& hidden_state, const MatrixView& before,
                                     LayerActivations* acts) {
  acts->side_before = before;
  QST_RETURN_IF_ERROR(AllocateDownsample(config_, before.rows, &arena_, &acts->down));
  QST_ASSIGN_OR_RETURN(acts->mixed, arena_.Float(before.rows, config_.hidden_size));
  QST_RETURN_IF_ERROR(AllocateSideLayer(config_, acts->mixed, /*cache=*/nullptr, &arena_, &acts->layer));
  return DownsampleInput(ctx_, config_, downsample_values(layer), hidden_state, &acts->down);
}

absl::Status SideNetwork::FinishLayer(std::int64_t layer, const SideSequences& sequences,
                                      const LayerActivations& acts) {
  QST_RETURN_IF_ERROR(DownsampleRest(ctx_, config_, downsample_values(layer), acts.down, &arena_));
  QST_RETURN_IF_ERROR(
      GateMix(ctx_, acts.down.out, acts.side_before, gate_value(layer), /*apply_sigmoid=*/true, acts.mixed));
  return SideLayerForward(ctx_, config_, layer_values(layer), sequences, /*cache=*/nullptr, acts.layer, &arena_);
}

absl::Status SideNetwork::Evaluate(const SideBatch& batch, const HiddenStateSource& hidden_states,
                                   const SideStateSink& sink) {
  QST_ASSIGN_OR_RETURN(const DeviceBatch uploaded, Begin(batch, /*want_grad=*/false));
  const std::int64_t num_tokens = batch.num_tokens();
  const std::int64_t num_layers = config_.backbone.num_layers;
  HeadArgs args;
  args.targets = uploaded.targets;
  if (!config_.has_side_network()) {
    QST_ASSIGN_OR_RETURN(args.backbone_last, FetchState(hidden_states, num_layers, num_tokens));
    return RunHead(args);
  }
  const SideSequences sequences = SequencesOf(uploaded);
  // One state is kept; what a layer needs besides is given back after it.
  QST_ASSIGN_OR_RETURN(const MatrixView state, arena_.Float(num_tokens, config_.hidden_size));
  for (std::int64_t layer = 0; layer <= num_layers; ++layer) {
    QST_ASSIGN_OR_RETURN(const ConstMatrixView hidden, FetchState(hidden_states, layer, num_tokens));
    const ArenaScope scope(&arena_);
    LayerActivations acts;
    if (layer == 0) {
      QST_RETURN_IF_ERROR(DownsampleForward(ctx_, config_, downsample_values(0), hidden, &arena_, &acts.down));
    } else {
      QST_RETURN_IF_ERROR(BeginLayer(layer, hidden, state, &acts));
      QST_RETURN_IF_ERROR(FinishLayer(layer, sequences, acts));
    }
    QST_RETURN_IF_ERROR(AddInto(ctx_, layer == 0 ? acts.down.out : acts.layer.out, state, /*accumulate=*/false));
    if (sink) sink(layer, state);
    args.backbone_last = hidden;
  }
  args.side_last = state;
  return RunHead(args);
}

absl::Status SideNetwork::AccumulateGradients(const SideBatch& batch, const HiddenStateSource& hidden_states,
                                              float grad_scale, const SideStateSink& sink) {
  QST_ASSIGN_OR_RETURN(const DeviceBatch uploaded, Begin(batch, /*want_grad=*/true));
  const std::int64_t num_tokens = batch.num_tokens();
  HeadArgs args;
  args.targets = uploaded.targets;
  args.want_grad = true;
  args.grad_scale = grad_scale;
  if (!config_.has_side_network()) {
    QST_ASSIGN_OR_RETURN(args.backbone_last, FetchState(hidden_states, config_.backbone.num_layers, num_tokens));
    backbone_last_ = args.backbone_last;
    has_activations_ = true;
    return RunHead(args);
  }
  const SideSequences sequences = SequencesOf(uploaded);
  QST_RETURN_IF_ERROR(ForwardLayers(hidden_states, sequences, uploaded.num_rows, num_tokens, sink, &args));
  has_activations_ = true;
  QST_ASSIGN_OR_RETURN(args.grad_side_last, arena_.Float(uploaded.num_rows, config_.hidden_size));
  QST_RETURN_IF_ERROR(RunHead(args));
  if (batch.rows.empty()) return absl::OkStatus();
  QST_ASSIGN_OR_RETURN(const MatrixView grad_other, arena_.Float(uploaded.num_rows, config_.hidden_size));
  return BackwardLayers(sequences, args.grad_side_last, grad_other);
}

absl::Status SideNetwork::ForwardLayers(const HiddenStateSource& hidden_states, const SideSequences& sequences,
                                        std::int64_t num_rows, std::int64_t num_tokens, const SideStateSink& sink,
                                        HeadArgs* args) {
  QST_ASSIGN_OR_RETURN(ConstMatrixView hidden, FetchState(hidden_states, 0, num_tokens));
  QST_RETURN_IF_ERROR(AllocateDownsample(config_, num_rows, &arena_, &first_down_));
  QST_RETURN_IF_ERROR(DownsampleInput(ctx_, config_, downsample_values(0), hidden, &first_down_));
  QST_RETURN_IF_ERROR(DownsampleRest(ctx_, config_, downsample_values(0), first_down_, &arena_));
  MatrixView state = first_down_.out;
  if (sink) sink(0, Rows(state, 0, num_tokens));
  for (std::int64_t layer = 1; layer <= config_.backbone.num_layers; ++layer) {
    QST_ASSIGN_OR_RETURN(hidden, FetchState(hidden_states, layer, num_tokens));
    LayerActivations& acts = activations_[layer - 1];
    QST_RETURN_IF_ERROR(BeginLayer(layer, hidden, state, &acts));
    QST_RETURN_IF_ERROR(
        graphs_.Run(static_cast<std::size_t>(layer - 1), [&] { return FinishLayer(layer, sequences, acts); }));
    state = acts.layer.out;
    if (sink) sink(layer, Rows(state, 0, num_tokens));
  }
  args->backbone_last = hidden;
  args->side_last = state;
  return absl::OkStatus();
}

absl::Status SideNetwork::RunHead(const HeadArgs& args) {
  return qst::RunHead(ctx_, config_, frozen_, head_values_, head_gradients_, args, &arena_, predictions_.outputs());
}

absl::Status SideNetwork::BackwardThroughLayers(const SideSequences& sequences, MatrixView grad,
                                                MatrixView grad_before) {
  // `grad` is the gradient of h_g[layer], then of the layer's input; its downsampled half and that of h_g[layer-1] go
  // to acts.mixed, which nobody reads any more, and `grad_before`.
  for (std::int64_t layer = config_.backbone.num_layers; layer >= 1; --layer) {
    const LayerActivations& acts = activations_[layer - 1];
    QST_RETURN_IF_ERROR(SideLayerBackward(ctx_, config_, layer_values_[layer - 1], layer_gradients_[layer - 1],
                                          sequences, acts.layer, grad, &arena_));
    QST_RETURN_IF_ERROR(GateMixBackward(ctx_, grad, acts.down.out, acts.side_before, gate_value(layer),
                                        /*apply_sigmoid=*/true, /*grad_a=*/acts.mixed, grad_before,
                                        gate_gradients_[layer - 1]));
    QST_RETURN_IF_ERROR(DownsampleBackward(ctx_, config_, downsample_values(layer),
                                           downsample_gradients_[config_.downsample_module(layer)], acts.down,
                                           acts.mixed, /*room=*/acts.layer.y, &arena_));
    std::swap(grad, grad_before);
  }
  return DownsampleBackward(ctx_, config_, downsample_values(0), downsample_gradients_[0], first_down_, grad,
                            /*room=*/grad_before, &arena_);
}

absl::Status SideNetwork::BackwardLayers(const SideSequences& sequences, MatrixView grad_last, MatrixView grad_other) {
  const std::int64_t num_layers = config_.backbone.num_layers;
  QST_RETURN_IF_ERROR(graphs_.Run(static_cast<std::size_t>(num_layers),
                                  [&] { return BackwardThroughLayers(sequences, grad_last, grad_other); }));
  for (std::int64_t layer = num_layers; layer >= 1; --layer) {
    const LayerActivations& acts = activations_[layer - 1];
    QST_RETURN_IF_ERROR(DownsampleBackwardInput(ctx_, downsample_gradients_[config_.downsample_module(layer)],
                                                acts.down.input,
                                                GradOfProduct(config_, acts.down, acts.mixed, acts.layer.y)));
  }
  // The two change places at every layer.
  if (num_layers % 2 != 0) std::swap(grad_last, grad_other);
  return DownsampleBackwardInput(ctx_, downsample_gradients_[0], first_down_.input,
                                 GradOfProduct(config_, first_down_, grad_last, grad_other));
}

std::vector<std::pair<std::string, ConstMatrixView>> SideNetwork::Places() const {
  std::vector<std::pair<std::string, ConstMatrixView>> places;
  const auto state = [](std::size_t layer) { return absl::StrCat("the backbone's hidden state of layer ", layer); };
  if (!config_.has_side_network()) {
    places.emplace_back(state(static_cast<std::size_t>(config_.backbone.num_layers)), backbone_last_);
    return places;
  }
  places.emplace_back(state(0), first_down_.input);
  places.emplace_back("downsample module 0", first_down_.out);
  for (std::size_t i = 0; i < activations_.size(); ++i) {
    const LayerActivations& acts = activations_[i];
    places.emplace_back(state(i + 1), acts.down.input);
    places.emplace_back(absl::StrCat("the downsample module of layer ", i + 1), acts.down.out);
    places.emplace_back(absl::StrCat("side layer ", i + 1), acts.layer.out);
  }
  return places;
}

absl::StatusOr<bool> SideNetwork::IsFinite(const ConstMatrixView& matrix) const {
  QST_ASSIGN_OR_RETURN(const std::vector<float> values, DownloadMatrix(ctx_, matrix));
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

std::string SideNetwork::DescribeNonFinite() const {
  if (!has_activations_) return "an unknown place";
  for (const auto& [name, matrix] : Places()) {
    const absl::StatusOr<bool> is_finite = IsFinite(matrix);
    if (!is_finite.ok()) return absl::StrCat("an unknown place (", is_finite.status().message(), ")");
    if (!*is_finite) return name;
  }
  return "the output";
}

}  // namespace qst
