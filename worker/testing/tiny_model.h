// A model of any family and small shape with seeded random weights, written as a Hugging Face folder: what tests use
// when they need a model whose every number is known. Its tokenizer is byte-level BPE without merges: token id = byte
// value, then <s> 256, </s> 257.
#ifndef QST_WORKER_TESTING_TINY_MODEL_H_
#define QST_WORKER_TESTING_TINY_MODEL_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/checkpoint/model_config.h"

namespace qst {

struct TinyModel {
  ModelConfig config;
  std::map<std::string, std::vector<float>> tensors;  // by Hugging Face name, row-major
};

// 3 layers, width 32, 4 heads of 8, 2 key/value heads, feed-forward 48, vocabulary 258, context 128, untied head.
ModelConfig TinyLlamaConfig();
// The same widths with OPT's layers: 4 key/value heads, tied head. post_norm: as OPT-350M, with an embedding of 16.
ModelConfig TinyOptConfig(bool post_norm = false);

// Weights ~ N(0, 1/fan_in), norms around 1, biases small. The same seed gives the same numbers everywhere.
TinyModel MakeTinyModel(const ModelConfig& config, std::uint64_t seed);

// Writes config.json, model.safetensors (F32), tokenizer.json, tokenizer_config.json into `folder`, which must exist.
absl::Status WriteTinyModel(const TinyModel& model, const std::string& folder);

// The tokenizer.json and tokenizer_config.json that WriteTinyModel writes.
absl::Status WriteTinyTokenizer(const std::string& folder);

// A new empty folder under the test's temporary folder.
std::string MakeTestFolder(const std::string& name);

}  // namespace qst

#endif  // QST_WORKER_TESTING_TINY_MODEL_H_
