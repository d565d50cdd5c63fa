// LLaMA 1, 2 and 3, SmolLM2, TinyLlama: "LlamaForCausalLM".
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/families/family.h"
#include "worker/checkpoint/families/llama_layers.h"

namespace qst {
namespace {

absl::Status Parse(ConfigReader& fields, ModelConfig* config) {
  QST_RETURN_IF_ERROR(ParseLlamaLayers(fields, config));
  config->attention_bias = fields.Bool("attention_bias", false);
  config->attention_out_bias = config->attention_bias;
  config->mlp_bias = fields.Bool("mlp_bias", false);
  if (fields.Has("sliding_window") && fields.Bool("use_sliding_window", true)) {
    const std::int64_t window = fields.Int("sliding_window", 0);
    if (window < config->max_position_embeddings) {
      return UnsupportedConfig(fields.where(), absl::StrCat("a sliding window of ", window,
                                                            " tokens is not part of the LLaMA architecture"));
    }
  }
  return absl::OkStatus();
}

void Write(const ModelConfig& config, nlohmann::json* object) {
  WriteLlamaLayers(config, object);
  (*object)["attention_bias"] = config.attention_bias;
  (*object)["mlp_bias"] = config.mlp_bias;
}

}  // namespace

extern const FamilyDefinition kLlamaFamily;
const FamilyDefinition kLlamaFamily = {"LlamaForCausalLM",
                                       "llama",
                                       ModelFamily::kLlama,
                                       /*gguf_architecture=*/"llama",
                                       /*gguf_interleaves_heads=*/true,
                                       Parse,
                                       ValidateLlamaLayers,
                                       Write,
                                       LlamaOuterTensors,
                                       LlamaLayerTensors,
                                       kLlamaLayerPrefix};

}  // namespace qst
