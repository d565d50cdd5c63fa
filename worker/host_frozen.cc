#include "worker/host_frozen.h"

#include <string>
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
  dims.embedding_size = config.embedding_width();
  if (config.family == ModelFamily::kOpt) {
    dims.activation = config.activation == MlpActivation::kGelu ? Activation::kGelu : Activation::kRelu;
    dims.has_bias = config.attention_bias;
    dims.is_post_norm = config.is_post_norm;
    dims.has_norm_affine = config.has_norm_affine;
    dims.has_final_norm = config.has_final_norm();
  }
  return dims;
}

absl::Status FrozenWeights::AddVector(const StoredModel& model, const std::string& name, ConstMatrixView* view) {
  if (name.empty()) return absl::OkStatus();
  QST_ASSIGN_OR_RETURN(std::vector<float> values, model.Floats(name));
  weights_.Add(std::move(values), view);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<FrozenWeights>> FrozenWeights::Load(const OpContext& ctx, const StoredModel& model,
                                                                   bool needs_lm_head) {
  auto weights = absl::WrapUnique(new FrozenWeights(ctx));
  const ModelConfig& config = model.config();
  const OuterTensorNames names = OuterTensors(config);
  FrozenHead& head = weights->head_;
  QST_RETURN_IF_ERROR(weights->AddVector(model, names.final_norm, &head.final_norm));
  QST_RETURN_IF_ERROR(weights->AddVector(model, names.final_norm_bias, &head.final_norm_bias));
  head.norm = config.family == ModelFamily::kLlama ? NormKind::kRms
              : config.has_final_norm()            ? NormKind::kLayer
                                                   : NormKind::kNone;
  head.norm_eps = static_cast<float>(config.norm_eps);
  if (!names.project_out.empty()) {
    QST_ASSIGN_OR_RETURN(head.projection, model.Weight(names.project_out));
    weights->weights_.Add(&head.projection);
  }
  if (needs_lm_head) {
    QST_ASSIGN_OR_RETURN(const ConstMatrixView matrix, model.Head());
    head.lm_head = WeightView::Dense(matrix);
    weights->weights_.Add(&head.lm_head);
  }
  QST_RETURN_IF_ERROR(weights->weights_.Upload(ctx));
  return weights;
}

FrozenWeights::~FrozenWeights() { Synchronize(ctx_).IgnoreError(); }

}  // namespace qst
