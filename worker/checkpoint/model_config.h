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

// The kinds of decoder layers that stages and side networks compute.
enum class ModelFamily : std::uint8_t {
  kLlama,  // RMSNorm, rotary embedding, grouped-query attention, SwiGLU: LLaMA, Mistral, Qwen2
  kOpt,    // LayerNorm, learned positions, biases, two-layer feed-forward part
};
// "llama" or "opt".
const char* ModelFamilyName(ModelFamily family);

// How rotary frequencies are stretched beyond the length that the model was first trained on. kDynamic: not at all up
// to that length, which is max_position_embeddings; longer sequences, which it would stretch, are refused.
enum class RopeScalingType : std::uint8_t { kNone, kLinear, kDynamic, kLlama3 };

// Between the two layers of OPT's feed-forward part.
enum class MlpActivation : std::uint8_t { kRelu, kGelu };

struct RopeScaling {
  RopeScalingType type = RopeScalingType::kNone;
  double factor = 1.0;  // kDynamic: kept, of no effect
  // kLlama3 only.
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::int64_t original_max_position_embeddings = 8192;
};

// The first rows of OPT's table of positions are not used.
inline constexpr std::int64_t kOptPositionOffset = 2;

struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  std::string architecture = "LlamaForCausalLM";  // config.json's own words, kept
  std::string model_type = "llama";               // a line of families/registry.cc

  std::int64_t vocab_size = 0;         // V
  std::int64_t hidden_size = 0;        // d
  std::int64_t intermediate_size = 0;  // width of the feed-forward part
  std::int64_t num_layers = 0;         // N
  std::int64_t num_heads = 0;          // query heads
  std::int64_t num_kv_heads = 0;       // divides num_heads
  std::int64_t head_dim = 0;           // num_heads * head_dim need not be hidden_size; even where it is rotated
  std::int64_t max_position_embeddings = 0;

  double norm_eps = 1e-6;
  bool tie_word_embeddings = false;  // the LM head is the embedding table
  bool attention_bias = false;       // q, k and v projections have a bias
  bool attention_out_bias = false;   // o projection
  bool mlp_bias = false;             // feed-forward projections

  // Family kLlama.
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  // A token of layer i (from 0) sees the last sliding_window tokens, itself included, if i >= first_window_layer.
  // 0: all of them.
  std::int64_t sliding_window = 0;
  std::int64_t first_window_layer = 0;

  // Family kOpt.
  std::int64_t embedding_size = 0;  // e, width of the embedding table; projected to and from d if it differs. 0: d
  MlpActivation activation = MlpActivation::kRelu;
  bool is_post_norm = false;        // norms follow attention and feed-forward part instead of preceding them
  bool has_norm_affine = true;      // norms have weight and bias
  bool removes_final_norm = false;  // config.json's _remove_final_layer_norm

  std::optional<std::int64_t> bos_token_id;
  std::vector<std::int64_t> eos_token_ids;  // config.json: one number or a list
  std::optional<std::int64_t> pad_token_id;
  std::string torch_dtype = "float32";  // float32, float16 or bfloat16

  std::int64_t q_size() const { return num_heads * head_dim; }
  std::int64_t kv_size() const { return num_kv_heads * head_dim; }
  std::int64_t embedding_width() const { return embedding_size == 0 ? hidden_size : embedding_size; }
  bool has_projections() const { return embedding_width() != hidden_size; }
  // Behind the last layer.
  bool has_final_norm() const { return !is_post_norm && !removes_final_norm; }
  // Rows of the table of learned positions; 0: there is none. Position p is row p + kOptPositionOffset.
  std::int64_t position_rows() const;
  // What a token of layer i sees; 0: all before it.
  std::int64_t WindowOf(std::int64_t layer) const { return layer >= first_window_layer ? sliding_window : 0; }
  // Trainable numbers of the original model; a tied head counts once.
  std::int64_t NumParameters() const;
};

// Reads config.json of any kind of model in families/. `where` names the file in messages.
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
  enum class Kind : std::uint8_t { kEmbedding, kPositions, kNorm, kLinear, kBias, kHead };
  std::string name;
  Kind kind = Kind::kLinear;
  int layer = -1;                   // -1: outside the layers
  std::vector<std::int64_t> shape;  // linear weights: [outputs, inputs]
  bool is_output = false;           // outside the layers: used behind the last one, not before the first

  std::int64_t num_elems() const;
};

// The tensors before the first layer and behind the last. An empty name: the model has no such tensor.
struct OuterTensorNames {
  std::string embedding;        // [V, e]
  std::string positions;        // [position_rows, d]
  std::string project_in;       // [d, e]
  std::string final_norm;       // [d]
  std::string final_norm_bias;  // [d]
  std::string project_out;      // [e, d]
  std::string head;             // [V, e]; the embedding's if the model ties them
};
OuterTensorNames OuterTensors(const ModelConfig& config);
// What the names of a layer's tensors begin with, "model.layers.3.".
std::string LayerPrefix(const ModelConfig& config, std::int64_t layer);

// All tensors that a model of this shape has, in the order of use: embedding, layers, last norm, head
// (untied only).
std::vector<ModelTensor> ModelTensors(const ModelConfig& config);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_MODEL_CONFIG_H_
