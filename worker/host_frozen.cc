#include "worker/host_frozen.h"

#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"

namespace qst {

BackboneDims DimsOf(const ModelConfig& config) {
  BackboneDims dims;
  dims.family = ModelFamilyName(config.family);
  dims.num_layers = config.num_layers;
  dims.hidden_size = config.hidden_size;
  dims.intermediate_size = config.intermediate_size;
  dims.num_heads = config.num_heads;
  dims.num_kv_heads = config.num_kv_heads;
  dims.vocab_size = config.vocab_size;
  dims.norm_eps = static_cast<float>(config.norm_eps);
  dims.rope_theta = config.rope_theta;
  return dims;
}

absl::StatusOr<std::unique_ptr<FrozenWeights>> FrozenWeights::Load(const OpContext& ctx, const StoredModel& model,
                                                                   bool needs_lm_head) {
  auto weights = absl::WrapUnique(new FrozenWeights(ctx));
  QST_ASSIGN_OR_RETURN(std::vector<float> norm, model.Floats(OuterTensors(model.config()).final_norm));
  weights->weights_.Add(std::move(norm), &weights->head_.final_norm);
  weights->head_.norm_eps = static_cast<float>(model.config().norm_eps);
  if (needs_lm_head) {
    QST_ASSIGN_OR_RETURN(const ConstMatrixView head, model.Head());
    weights->head_.lm_head = WeightView::Dense(head);
    weights->weights_.Add(&weights->head_.lm_head);
  }
  QST_RETURN_IF_ERROR(weights->weights_.Upload(ctx));
  return weights;
}

FrozenWeights::~FrozenWeights() { Synchronize(ctx_).IgnoreError(); }

}  // namespace qst
