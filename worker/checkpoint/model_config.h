// The shape of a backbone, as config.json of a Hugging Face folder describes it.
#ifndef QST_WORKER_CHECKPOINT_MODEL_CONFIG_H_
#define QST_WORKER_CHECKPOINT_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

enum class ModelFamily : std::uint8_t {
  kLlama,  // RMSNorm, rotary embedding, grouped-query attention, SwiGLU
  kOpt,    // reserved: LayerNorm, learned positions, ReLU; nothing reads it yet
};

// How rotary frequencies are stretched beyond the length that the model was first trained on.
enum class RopeScalingType : std::uint8_t { kNone, kLinear, kLlama3 };

struct RopeScaling {
  RopeScalingType type = RopeScalingType::kNone;
  double factor = 1.0;
  // kLlama3 only.
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::int64_t original_max_position_embeddings = 8192;
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  std::string architecture = "LlamaForCausalLM";  // config.json's own words, kept
  std::string model_type = "llama";

  std::int64_t vocab_size = 0;         // V
  std::int64_t hidden_size = 0;        // d
  std::int64_t intermediate_size = 0;  // width of the gated feed-forward part
  std::int64_t num_layers = 0;         // N
  std::int64_t num_heads = 0;          // query heads
  std::int64_t num_kv_heads = 0;       // divides num_heads
  std::int64_t head_dim = 0;           // even; num_heads * head_dim need not be hidden_size
  std::int64_t max_position_embeddings = 0;

  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;

  bool tie_word_embeddings = false;  // the LM head is the embedding table
  bool attention_bias = false;       // q, k, v and o projections have a bias
  bool mlp_bias = false;             // gate, up and down projections have a bias

  std::optional<std::int64_t> bos_token_id;
  std::vector<std::int64_t> eos_token_ids;  // config.json: one number or a list
  std::optional<std::int64_t> pad_token_id;
  std::string torch_dtype = "float32";  // float32, float16 or bfloat16

  std::int64_t q_size() const { return num_heads * head_dim; }
  std::int64_t kv_size() const { return num_kv_heads * head_dim; }
  // Trainable numbers of the original model; a tied head counts once.
  std::int64_t NumParameters() const;
};

// Reads config.json. `where` names the file in messages. Accepted: LlamaForCausalLM, and MistralForCausalLM
// without a sliding window shorter than its context.
// Errors   kInvalidArgument: not JSON, a field missing, of the wrong type or out of range (named).
//          kUnimplemented: another architecture, activation, rotary scaling, or weights already quantized
//          in another way than bitsandbytes'.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json_text, absl::string_view where);

// The same for the config.json of a stored model, whose quantization_config says how the store holds it.
absl::StatusOr<ModelConfig> ParseStoredModelConfig(absl::string_view json_text, absl::string_view where);

// Checks ranges and divisibility. The ranges are generous (a thousand times today's models) and such that
// no product of sizes that code computes can overflow 64 bits.
absl::Status ValidateModelConfig(const ModelConfig& config, absl::string_view where);

// config.json that ParseModelConfig and Hugging Face's own code read back to the same values.
// `quantization_config`, if not empty, is a JSON object stored under that key.
std::string ModelConfigToJson(const ModelConfig& config, const std::string& quantization_config);

// Rotary frequencies after scaling, [head_dim / 2]: what the op Rotary takes.
std::vector<float> RotaryInverseFrequencies(const ModelConfig& config);

// One tensor of a model, under its Hugging Face name.
struct ModelTensor {
  enum class Kind : std::uint8_t { kEmbedding, kNorm, kLinear, kBias, kHead };
  std::string name;
  Kind kind = Kind::kLinear;
  int layer = -1;                   // -1: outside the layers
  std::vector<std::int64_t> shape;  // linear weights: [outputs, inputs]

  std::int64_t num_elems() const;
};

// All tensors that a model of this shape has, in the order of use: embedding, layers, last norm, head
// (untied only).
std::vector<ModelTensor> ModelTensors(const ModelConfig& config);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_MODEL_CONFIG_H_
