// Mistral: LLaMA's layers, all of them with a sliding window if the config names one. Its GGUF files say "llama".
#include "proto/support/status_macros.h"
#include "worker/checkpoint/families/family.h"
#include "worker/checkpoint/families/llama_layers.h"

namespace qst {
namespace {

absl::Status Parse(ConfigReader& fields, ModelConfig* config) {
  QST_RETURN_IF_ERROR(ParseLlamaLayers(fields, config));
  if (fields.Has("sliding_window")) {
    config->sliding_window = fields.Int("sliding_window");
    QST_RETURN_IF_ERROR(CheckConfigRange(fields.where(), "sliding_window", config->sliding_window, std::int64_t{1},
                                         std::int64_t{1} << 31));
  }
  return absl::OkStatus();
}

void Write(const ModelConfig& config, nlohmann::json* object) {
  WriteLlamaLayers(config, object);
  (*object)["sliding_window"] =
      config.sliding_window == 0 ? nlohmann::json(nullptr) : nlohmann::json(config.sliding_window);
}

}  // namespace

extern const FamilyDefinition kMistralFamily;
const FamilyDefinition kMistralFamily = {"MistralForCausalLM",
                                         "mistral",
                                         ModelFamily::kLlama,
                                         /*gguf_architecture=*/nullptr,
                                         /*gguf_interleaves_heads=*/false,
                                         Parse,
                                         ValidateLlamaLayers,
                                         Write,
                                         LlamaOuterTensors,
                                         LlamaLayerTensors,
                                         kLlamaLayerPrefix};

}  // namespace qst
