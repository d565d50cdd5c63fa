// Qwen2 and Qwen2.5: LLaMA's layers with biases of queries, keys and values; upper layers may have a sliding window.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/families/family.h"
#include "worker/checkpoint/families/llama_layers.h"

namespace qst {
namespace {

constexpr char kFull[] = "full_attention";
constexpr char kSliding[] = "sliding_attention";

absl::Status ParseWindow(ConfigReader& fields, ModelConfig* config) {
  if (!fields.Bool("use_sliding_window", false) || !fields.Has("sliding_window")) return absl::OkStatus();
  config->sliding_window = fields.Int("sliding_window");
  config->first_window_layer = fields.Int("max_window_layers", 28);
  QST_RETURN_IF_ERROR(CheckConfigRange(fields.where(), "sliding_window", config->sliding_window, std::int64_t{1},
                                       std::int64_t{1} << 31));
  // Newer files say it of each layer.
  const std::vector<std::string> types = fields.Strings("layer_types");
  if (types.empty()) return absl::OkStatus();
  if (static_cast<std::int64_t>(types.size()) != config->num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": layer_types has ", types.size(),
                                                   " entries, num_hidden_layers is ", config->num_layers));
  }
  std::int64_t first = 0;
  while (first < static_cast<std::int64_t>(types.size()) && types[first] == kFull) ++first;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(types.size()); ++i) {
    if (types[i] != (i < first ? kFull : kSliding)) {
      return UnsupportedConfig(fields.where(),
                               absl::StrCat("layer_types: layer ", i, " is '", types[i],
                                            "'; only full attention followed by sliding attention is supported"));
    }
  }
  config->first_window_layer = first;
  return absl::OkStatus();
}

absl::Status Parse(ConfigReader& fields, ModelConfig* config) {
  QST_RETURN_IF_ERROR(ParseLlamaLayers(fields, config));
  config->attention_bias = true;
  return ParseWindow(fields, config);
}

void Write(const ModelConfig& config, nlohmann::json* object) {
  WriteLlamaLayers(config, object);
  const bool has_window = config.sliding_window != 0;
  (*object)["use_sliding_window"] = has_window;
  (*object)["sliding_window"] = has_window ? nlohmann::json(config.sliding_window) : nlohmann::json(nullptr);
  (*object)["max_window_layers"] = has_window ? config.first_window_layer : config.num_layers;
}

}  // namespace

extern const FamilyDefinition kQwen2Family;
const FamilyDefinition kQwen2Family = {"Qwen2ForCausalLM",
                                       "qwen2",
                                       ModelFamily::kLlama,
                                       /*gguf_architecture=*/"qwen2",
                                       /*gguf_interleaves_heads=*/false,
                                       Parse,
                                       ValidateLlamaLayers,
                                       Write,
                                       LlamaOuterTensors,
                                       LlamaLayerTensors,
                                       kLlamaLayerPrefix};

}  // namespace qst
