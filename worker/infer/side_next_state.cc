#include "worker/infer/side_next_state.h"

#include <numeric>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<std::unique_ptr<SideNextState>> SideNextState::Create(const SideNetwork* network,
                                                                     std::int64_t max_tokens) {
  if (network->config().is_classification()) {
    return absl::FailedPreconditionError(
        "this side network was trained for classification: it names classes and cannot continue a text");
  }
  return absl::WrapUnique(new SideNextState(network, max_tokens));
}

SideNextState::SideNextState(const SideNetwork* network, std::int64_t max_tokens)
    : network_(network), max_tokens_(max_tokens) {
  const SideNetworkConfig& config = network->config();
  if (!config.has_side_network()) return;
  const std::int64_t width = config.head_dim * config.backbone.num_kv_heads;
  const std::int64_t elems = max_tokens * width;
  cache_memory_.resize(static_cast<std::size_t>(2 * elems * config.backbone.num_layers));
  for (std::int64_t i = 0; i < config.backbone.num_layers; ++i) {
    float* const begin = cache_memory_.data() + 2 * i * elems;
    SideKvCache cache;
    cache.keys = Matrix(begin, max_tokens, width);
    cache.values = Matrix(begin + elems, max_tokens, width);
    caches_.push_back(cache);
  }
}

absl::Status SideNextState::Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                                    const MatrixView& out) {
  const SideNetworkConfig& config = network_->config();
  const std::int64_t num_layers = config.backbone.num_layers;
  if (past_ + num_tokens > max_tokens_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the sequence has ", past_ + num_tokens, " tokens; room was made for ", max_tokens_));
  }
  arena_.Reset();
  const std::int32_t last_row = static_cast<std::int32_t>(num_tokens - 1);
  ConstMatrixView hidden;
  MatrixView state;
  if (config.has_side_network()) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(num_tokens));
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(past_));
    const std::int32_t offsets[2] = {0, static_cast<std::int32_t>(num_tokens)};
    const SideSequences sequences{{offsets, 1}, positions.data(), network_->inv_freq().data()};
    state = arena_.Float(num_tokens, config.hidden_size);
    for (std::int64_t layer = 0; layer <= num_layers; ++layer) {
      QST_ASSIGN_OR_RETURN(hidden, source(layer));
      const ArenaScope scope(&arena_);
      DownsampleActivations down;
      QST_RETURN_IF_ERROR(DownsampleForward(ctx, config, network_->downsample_values(layer), hidden, &arena_, &down));
      if (layer == 0) {
        QST_RETURN_IF_ERROR(AddInto(ctx, down.out, state, /*accumulate=*/false));
        continue;
      }
      const MatrixView mixed = arena_.Float(num_tokens, config.hidden_size);
      QST_RETURN_IF_ERROR(GateMix(ctx, down.out, state, network_->gate_value(layer), /*apply_sigmoid=*/true, mixed));
      SideKvCache& cache = caches_[static_cast<std::size_t>(layer - 1)];
      cache.num_tokens = past_;
      SideLayerActivations activations;
      QST_RETURN_IF_ERROR(SideLayerForward(ctx, config, network_->layer_values(layer), sequences, mixed, &cache,
                                           &arena_, &activations));
      QST_RETURN_IF_ERROR(AddInto(ctx, activations.out, state, /*accumulate=*/false));
    }
  } else {
    QST_ASSIGN_OR_RETURN(hidden, source(num_layers));
  }
  past_ += num_tokens;
  return MixedState(ctx, config, network_->frozen_head(), network_->head_values(), hidden, state, &last_row, 1, &arena_,
                    out);
}

}  // namespace qst
