// A stored model of any shape that was never trained, made in seconds: for benchmarks and measurements of memory.
#ifndef QST_WORKER_TESTING_SYNTHETIC_STORE_H_
#define QST_WORKER_TESTING_SYNTHETIC_STORE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/store_format.h"

namespace qst {

enum class SyntheticWeights : std::uint8_t {
  kRandom,  // all codes, constants and floats drawn at random; weights of about 0.02
  kHoles,   // zeros that take no disk, in a sparse file: where only sizes matter
};

// Writes config.json, model.safetensors and qst_model.json (whose checksum is not the file's) into `folder`, which must
// exist. There is no tokenizer. Embedding, head and norms are bf16.
absl::Status WriteSyntheticStore(const ModelConfig& config, const StoreQuantization& quantization,
                                 SyntheticWeights weights, const std::string& folder);

// The shapes of published models: "llama-2-7b", "llama-2-70b", "tiny" (for tries). kInvalidArgument: another name.
absl::StatusOr<ModelConfig> PublishedShape(const std::string& name);

}  // namespace qst

#endif  // QST_WORKER_TESTING_SYNTHETIC_STORE_H_
