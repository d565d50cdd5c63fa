#include "worker/infer/side_next_state.h"

#include <cstddef>
#include <cstdint>
#include <numeric>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<std::unique_ptr<SideNextState>> SideNextState::Create(const OpContext& ctx, const SideNetwork* network,
                                                                     std::int64_t max_tokens) {
  if (network->config().has_score_head()) {
    return absl::FailedPreconditionError(
        network->config().is_regression()
            ? "this side network was trained for regression: it gives a number and cannot continue a text"
            : "this side network was trained for classification: it names classes and cannot continue a text");
  }
  auto next_state = absl::WrapUnique(new SideNextState(ctx, network, max_tokens));
  if (network->config().has_side_network()) QST_RETURN_IF_ERROR(next_state->AllocateCaches(ctx));
  return next_state;
}

std::int64_t SideNextState::EstimateBytes(const SideNetworkConfig& config, DeviceType device, std::int64_t max_tokens) {
  std::int64_t per_token = 1;  // position
  if (config.has_side_network()) {
    const std::int64_t width = config.head_dim * config.backbone.num_kv_heads;
    const std::int64_t state_and_input = 2 * config.hidden_size;
    const std::int64_t scratch = config.hidden_size + config.intermediate_size + config.rank;
    per_token += 2 * width * config.backbone.num_layers + state_and_input + DownsampleFloatsPerToken(config) +
                 SideLayerFloatsPerToken(config) + scratch;
  }
  return static_cast<std::int64_t>(sizeof(float)) * (per_token * max_tokens + HeadFloats(config, device, 1));
}

absl::Status SideNextState::AllocateCaches(const OpContext& ctx) {
  const SideNetworkConfig& config = network_->config();
  const std::int64_t width = config.head_dim * config.backbone.num_kv_heads;
  const std::int64_t elems = max_tokens_ * width;
  const std::int64_t num_bytes = 2 * elems * config.backbone.num_layers * static_cast<std::int64_t>(sizeof(float));
  QST_ASSIGN_OR_RETURN(cache_memory_, DeviceMemory::Allocate(ctx, num_bytes));
  for (std::int64_t i = 0; i < config.backbone.num_layers; ++i) {
    float* const begin = cache_memory_.as<float>() + 2 * i * elems;
    SideKvCache cache;
    cache.keys = Matrix(begin, max_tokens_, width);
    cache.values = Matrix(begin + elems, max_tokens_, width);
    caches_.push_back(cache);
  }
  return absl::OkStatus();
}

absl::StatusOr<SideNextState::Indices> SideNextState::UploadIndices(const OpContext& ctx, std::int64_t num_tokens) {
  const auto num_new = static_cast<std::int32_t>(num_tokens);
  const auto past = static_cast<std::int32_t>(past_);
  std::vector<std::int32_t> packed = {0, num_new, 0, past + num_new, num_new - 1};
  const std::size_t positions_at = packed.size();
  packed.resize(positions_at + static_cast<std::size_t>(num_tokens));
  std::iota(packed.begin() + static_cast<std::ptrdiff_t>(positions_at), packed.end(), past);
  QST_ASSIGN_OR_RETURN(std::int32_t* const memory, arena_.Ints(static_cast<std::int64_t>(packed.size())));
  QST_RETURN_IF_ERROR(
      Upload(ctx, packed.data(), static_cast<std::int64_t>(packed.size() * sizeof(std::int32_t)), memory));
  Indices out;
  out.offsets = {memory, 1};
  out.key_offsets = {memory + 2, 1};
  out.last_row = memory + 4;
  out.positions = memory + positions_at;
  return out;
}

absl::Status SideNextState::RunLayers(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                                      const Indices& indices, ConstMatrixView* hidden_last, MatrixView* side_last) {
  const SideNetworkConfig& config = network_->config();
  const SideSequences sequences{indices.offsets, indices.positions, network_->inv_freq()};
  QST_ASSIGN_OR_RETURN(const MatrixView state, arena_.Float(num_tokens, config.hidden_size));
  for (std::int64_t layer = 0; layer <= config.backbone.num_layers; ++layer) {
    QST_ASSIGN_OR_RETURN(const ConstMatrixView hidden, source(layer));
    *hidden_last = hidden;
    const ArenaScope scope(&arena_);
    DownsampleActivations down;
    QST_RETURN_IF_ERROR(DownsampleForward(ctx, config, network_->downsample_values(layer), hidden, &arena_, &down));
    if (layer == 0) {
      QST_RETURN_IF_ERROR(AddInto(ctx, down.out, state, /*accumulate=*/false));
      continue;
    }
    QST_ASSIGN_OR_RETURN(const MatrixView mixed, arena_.Float(num_tokens, config.hidden_size));
    QST_RETURN_IF_ERROR(GateMix(ctx, down.out, state, network_->gate_value(layer), /*apply_sigmoid=*/true, mixed));
    SideKvCache& cache = caches_[static_cast<std::size_t>(layer - 1)];
    cache.num_tokens = past_;
    cache.key_offsets = indices.key_offsets;
    SideLayerActivations activations;
    QST_RETURN_IF_ERROR(AllocateSideLayer(config, mixed, &cache, &arena_, &activations));
    QST_RETURN_IF_ERROR(
        SideLayerForward(ctx, config, network_->layer_values(layer), sequences, &cache, activations, &arena_));
    QST_RETURN_IF_ERROR(AddInto(ctx, activations.out, state, /*accumulate=*/false));
  }
  *side_last = state;
  return absl::OkStatus();
}

absl::Status SideNextState::Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                                    const MatrixView& out) {
  const SideNetworkConfig& config = network_->config();
  if (past_ + num_tokens > max_tokens_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the sequence has ", past_ + num_tokens, " tokens; room was made for ", max_tokens_));
  }
  QST_RETURN_IF_ERROR(arena_.Reset());
  QST_ASSIGN_OR_RETURN(const Indices indices, UploadIndices(ctx, num_tokens));
  ConstMatrixView hidden;
  MatrixView state;
  if (config.has_side_network()) {
    QST_RETURN_IF_ERROR(RunLayers(ctx, num_tokens, source, indices, &hidden, &state));
  } else {
    QST_ASSIGN_OR_RETURN(hidden, source(config.backbone.num_layers));
  }
  past_ += num_tokens;
  return MixedState(ctx, config, network_->frozen_head(), network_->head_values(), hidden, state, indices.last_row, 1,
                    &arena_, out);
}

}  // namespace qst
