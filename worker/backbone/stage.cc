#include "worker/backbone/stage.h"

#include "absl/strings/str_cat.h"
#include "worker/backbone/llama_stage.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(const StoredModel& model, std::int64_t first_layer,
                                                     std::int64_t num_layers, std::int64_t max_cached_tokens) {
  const ModelConfig& config = model.config();
  if (first_layer < 0 || num_layers < 1 || num_layers > config.num_layers - first_layer) {
    return absl::InvalidArgumentError(absl::StrCat("layers [", first_layer, ", ", first_layer + num_layers,
                                                   ") do not lie in the model's ", config.num_layers, " layers"));
  }
  switch (config.family) {
    case ModelFamily::kLlama:
      return LlamaStage::Create(model, first_layer, num_layers, max_cached_tokens);
    default:
      return absl::UnimplementedError("this model family has no backbone stage yet; LLaMA-family models have");
  }
}

}  // namespace qst
