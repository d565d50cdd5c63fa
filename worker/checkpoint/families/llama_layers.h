// What the kinds of models with LLaMA's layers share. Names and defaults are Hugging Face's.
#ifndef QST_WORKER_CHECKPOINT_FAMILIES_LLAMA_LAYERS_H_
#define QST_WORKER_CHECKPOINT_FAMILIES_LLAMA_LAYERS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/config_reader.h"
#include "worker/checkpoint/model_config.h"

namespace qst {

inline constexpr char kLlamaLayerPrefix[] = "model.layers.";

// Widths, heads, norm and rotary embedding; nothing of biases and windows.
absl::Status ParseLlamaLayers(ConfigReader& fields, ModelConfig* config);
absl::Status ValidateLlamaLayers(const ModelConfig& config, absl::string_view where);
void WriteLlamaLayers(const ModelConfig& config, nlohmann::json* object);
OuterTensorNames LlamaOuterTensors(const ModelConfig& config);
std::vector<ModelTensor> LlamaLayerTensors(const ModelConfig& config);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_FAMILIES_LLAMA_LAYERS_H_
