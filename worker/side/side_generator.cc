#include "worker/side/side_generator.h"

#include <cstdint>
#include <numeric>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

SideGenerator::SideGenerator(const SideNetwork* network, SideNetworkConfig config, const FrozenHead& frozen,
                             std::int64_t max_tokens)
    : network_(network), config_(std::move(config)), frozen_(frozen), max_tokens_(max_tokens) {
  if (network_ == nullptr) return;
  head_ = network_->head_values();
  const std::int64_t kv = config_.head_dim * config_.backbone.num_kv_heads;
  cache_.resize(config_.backbone.num_layers * 2 * max_tokens * kv);
}

absl::StatusOr<std::unique_ptr<SideGenerator>> SideGenerator::Create(const SideNetwork* network,
                                                                     std::int64_t max_tokens) {
  if (network->config().is_classification()) {
    return absl::InvalidArgumentError("generation needs a side network for causal_lm; this one is a classifier");
  }
  if (max_tokens < 1) return absl::InvalidArgumentError("generation needs room for at least one token");
  return absl::WrapUnique(new SideGenerator(network, network->config(), network->frozen_head(), max_tokens));
}

absl::StatusOr<std::unique_ptr<SideGenerator>> SideGenerator::CreateUntouched(const BackboneDims& backbone,
                                                                              const FrozenHead& frozen,
                                                                              std::int64_t max_tokens) {
  if (max_tokens < 1) return absl::InvalidArgumentError("generation needs room for at least one token");
  if (frozen.lm_head.rows() != backbone.vocab_size || frozen.lm_head.cols() != backbone.hidden_size) {
    return absl::InvalidArgumentError("generation needs the model's LM head");
  }
  SideNetworkConfig config;
  config.backbone = backbone;
  config.preset = v1::SIDE_PRESET_PROBE;  // nothing between the last hidden state and the head
  return absl::WrapUnique(new SideGenerator(nullptr, std::move(config), frozen, max_tokens));
}

absl::Status SideGenerator::RunLayers(const OpContext& ctx, std::int64_t num_new,
                                      const HiddenStateSource& hidden_states, ConstMatrixView* backbone_last,
                                      ConstMatrixView* side_last) {
  const std::int64_t kv = config_.head_dim * config_.backbone.num_kv_heads;
  positions_.resize(num_new);
  std::iota(positions_.begin(), positions_.end(), static_cast<std::int32_t>(num_tokens_));
  const std::int32_t offsets[2] = {0, static_cast<std::int32_t>(num_new)};
  const SideSequences sequences{{offsets, 1}, positions_.data(), network_->inv_freq().data()};
  const MatrixView state = arena_.Float(num_new, config_.hidden_size);
  for (std::int64_t layer = 0; layer <= config_.backbone.num_layers; ++layer) {
    QST_ASSIGN_OR_RETURN(const ConstMatrixView hidden, hidden_states(layer));
    if (hidden.rows != num_new) return absl::InvalidArgumentError("generation: hidden states of another length");
    const ArenaScope scope(&arena_);
    DownsampleActivations down;
    QST_RETURN_IF_ERROR(DownsampleForward(ctx, config_, network_->downsample_values(layer), hidden, &arena_, &down));
    *backbone_last = hidden;
    if (layer == 0) {
      QST_RETURN_IF_ERROR(AddInto(ctx, down.out, state, /*accumulate=*/false));
      continue;
    }
    SideKvCache cache;
    float* const keys = cache_.data() + (layer - 1) * 2 * max_tokens_ * kv;
    cache.keys = Matrix(keys, max_tokens_, kv);
    cache.values = Matrix(keys + max_tokens_ * kv, max_tokens_, kv);
    cache.num_tokens = num_tokens_;
    const MatrixView mixed = arena_.Float(num_new, config_.hidden_size);
    QST_RETURN_IF_ERROR(
        GateMix(ctx, down.out, state, network_->gate_value(layer), /*apply_sigmoid=*/true, mixed));
    SideLayerActivations acts;
    QST_RETURN_IF_ERROR(
        SideLayerForward(ctx, config_, network_->layer_values(layer), sequences, mixed, &cache, &arena_, &acts));
    QST_RETURN_IF_ERROR(AddInto(ctx, acts.out, state, /*accumulate=*/false));
  }
  *side_last = state;
  return absl::OkStatus();
}

absl::Status SideGenerator::Append(const OpContext& ctx, std::int64_t num_new, const HiddenStateSource& hidden_states,
                                   std::vector<float>* logits) {
  if (num_new < 1) return absl::InvalidArgumentError("generation: no new tokens");
  if (num_new > max_tokens_ - num_tokens_) {
    return absl::OutOfRangeError(absl::StrCat("generation: ", num_tokens_ + num_new, " tokens, there is room for ",
                                              max_tokens_));
  }
  arena_.Reset();
  ConstMatrixView backbone_last;
  ConstMatrixView side_last;
  if (network_ == nullptr) {
    QST_ASSIGN_OR_RETURN(backbone_last, hidden_states(config_.backbone.num_layers));
    if (backbone_last.rows != num_new) {
      return absl::InvalidArgumentError("generation: hidden states of another length");
    }
  } else {
    QST_RETURN_IF_ERROR(RunLayers(ctx, num_new, hidden_states, &backbone_last, &side_last));
  }
  const auto last_row = static_cast<std::int32_t>(num_new - 1);
  const MatrixView mixed = arena_.Float(1, config_.backbone.hidden_size);
  QST_RETURN_IF_ERROR(
      MixedState(ctx, config_, frozen_, head_, backbone_last, side_last, &last_row, 1, &arena_, mixed));
  logits->resize(config_.backbone.vocab_size);
  QST_RETURN_IF_ERROR(Linear(ctx, mixed, frozen_.lm_head, {}, Matrix(logits->data(), 1, config_.backbone.vocab_size),
                             /*accumulate=*/false));
  num_tokens_ += num_new;
  return absl::OkStatus();
}

}  // namespace qst
