#include "worker/train/backbone_head.h"

#include <memory>

#include "absl/memory/memory.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<BackboneDims> BackboneDimsOf(const ModelConfig& config) {
  if (config.family != ModelFamily::kLlama) {
    return absl::UnimplementedError("side network: only backbones of the LLaMA family have side layers");
  }
  BackboneDims dims;
  dims.family = "llama";
  dims.num_layers = config.num_layers;
  dims.hidden_size = config.hidden_size;
  dims.intermediate_size = config.intermediate_size;
  dims.num_heads = config.num_heads;
  dims.num_kv_heads = config.num_kv_heads;
  dims.vocab_size = config.vocab_size;
  dims.norm_eps = static_cast<float>(config.rms_norm_eps);
  dims.rope_theta = config.rope_theta;
  return dims;
}

absl::StatusOr<std::unique_ptr<BackboneHead>> BackboneHead::Load(const StoredModel& model, bool needs_lm_head) {
  auto head = absl::WrapUnique(new BackboneHead());
  QST_ASSIGN_OR_RETURN(head->final_norm_, model.Floats("model.norm.weight"));
  const float* norm = head->final_norm_.data();
  head->frozen_.final_norm = Matrix(norm, 1, static_cast<std::int64_t>(head->final_norm_.size()));
  head->frozen_.norm_eps = static_cast<float>(model.config().rms_norm_eps);
  if (needs_lm_head) {
    QST_ASSIGN_OR_RETURN(const ConstMatrixView lm_head, model.Head());
    head->frozen_.lm_head = WeightView::Dense(lm_head);
  }
  return head;
}

}  // namespace qst
