// What one kind of model is made of: how its config.json is read and written, and which tensors it has. A new kind is
// one file of this folder, and a line in registry.cc. Its decoder layers are worker/backbone's and worker/side's
// business.
#ifndef QST_WORKER_CHECKPOINT_FAMILIES_FAMILY_H_
#define QST_WORKER_CHECKPOINT_FAMILIES_FAMILY_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/config_reader.h"
#include "worker/checkpoint/model_config.h"

namespace qst {

struct FamilyDefinition {
  const char* architecture;  // in "architectures" of config.json
  const char* model_type;    // in "model_type"
  ModelFamily layers;        // the decoder layers that compute it
  // general.architecture of its GGUF files; null: GGUF files of this kind are not read.
  const char* gguf_architecture;
  // GGUF files of this kind rotate neighbouring channels, so that rows of query and key weights are interleaved there.
  bool gguf_interleaves_heads;

  // Reads what is this kind's own; vocabulary, token ids and dtype are read before. Refuses with kUnimplemented what
  // would silently compute something else than the model's authors meant. Wrong types may be left in fields.status().
  absl::Status (*parse)(ConfigReader& fields, ModelConfig* config);
  // Checks what parse has read, after common ranges were checked.
  absl::Status (*validate)(const ModelConfig& config, absl::string_view where);
  // Adds what parse reads.
  void (*write)(const ModelConfig& config, nlohmann::json* object);
  OuterTensorNames (*outer_tensors)(const ModelConfig& config);
  // Of one layer, in the order of use, names without the layer's prefix.
  std::vector<ModelTensor> (*layer_tensors)(const ModelConfig& config);
  // Of layer i: layer_prefix, i, ".".
  const char* layer_prefix;
};

// Every kind there is.
const std::vector<const FamilyDefinition*>& AllFamilies();
// By config.json's own words: the architecture if it is not empty, else the model type. Null: there is none.
const FamilyDefinition* FindFamily(absl::string_view architecture, absl::string_view model_type);
// Of a config that was read here, or made by hand with a known model_type.
const FamilyDefinition& FamilyOf(const ModelConfig& config);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_FAMILIES_FAMILY_H_
