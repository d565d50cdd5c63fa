// A model to be imported, whatever its format: config, tensors and tokenizer behind one structure.
#ifndef QST_WORKER_CHECKPOINT_MODEL_SOURCE_H_
#define QST_WORKER_CHECKPOINT_MODEL_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/text/tokenizer_definition.h"

namespace qst {

struct ModelSource {
  std::string path;                // of the GGUF or llama2.c file, or of the Hugging Face folder
  std::string format;              // "gguf", "llama2.c", "safetensors" or "pytorch"
  std::uint64_t weight_bytes = 0;  // size of the weight files
  ModelConfig config;
  std::unique_ptr<TensorSource> tensors;
  // Set if the tokenizer comes with the weight file (GGUF, llama2.c); otherwise its files lie in the folder `path`.
  std::optional<TokenizerDefinition> tokenizer;
};

// Opens a GGUF file, a llama2.c checkpoint (or a folder with one), a Hugging Face folder, or the weight file of such a
// folder, and checks that every tensor which the config calls for is there in the right shape. Files are told apart by
// their contents, whatever they are called.
// Errors   of the readers; kNotFound: no such path, or parts missing in it; kInvalidArgument: a tensor missing
//          or misshapen; kUnimplemented: file kind, architecture.
absl::StatusOr<ModelSource> OpenModelSource(const std::string& path);

// The last of these checks alone. `where` names the model.
absl::Status CheckModelTensors(const ModelConfig& config, const TensorSource& tensors, const std::string& where);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_MODEL_SOURCE_H_
