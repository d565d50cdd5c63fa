#include "worker/checkpoint/families/llama_layers.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/families/rope.h"

namespace qst {

absl::Status ParseLlamaLayers(ConfigReader& fields, ModelConfig* config) {
  config->hidden_size = fields.Int("hidden_size");
  config->intermediate_size = fields.Int("intermediate_size");
  config->num_layers = fields.Int("num_hidden_layers");
  config->num_heads = fields.Int("num_attention_heads");
  config->num_kv_heads = fields.Int("num_key_value_heads", config->num_heads);
  config->max_position_embeddings = fields.Int("max_position_embeddings", 2048);
  if (fields.Has("head_dim")) {
    config->head_dim = fields.Int("head_dim");
  } else if (fields.status().ok()) {
    if (config->num_heads <= 0 || config->hidden_size % config->num_heads != 0) {
      return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": hidden_size ", config->hidden_size,
                                                     " is no multiple of num_attention_heads ", config->num_heads));
    }
    config->head_dim = config->hidden_size / config->num_heads;
  }
  config->norm_eps = fields.Double("rms_norm_eps", 1e-6);
  config->tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu") {
    return UnsupportedConfig(fields.where(), absl::StrCat("hidden_act '", activation, "' is not supported (silu is)"));
  }
  return ParseRope(fields, config);
}

absl::Status ValidateLlamaLayers(const ModelConfig& config, absl::string_view where) {
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": head_dim is ", config.head_dim, ", must be even for the rotary embedding"));
  }
  if (config.sliding_window != 0) {
    QST_RETURN_IF_ERROR(
        CheckConfigRange(where, "sliding_window", config.sliding_window, std::int64_t{1}, std::int64_t{1} << 31));
    QST_RETURN_IF_ERROR(CheckConfigRange(where, "max_window_layers", config.first_window_layer, std::int64_t{0},
                                         std::int64_t{1} << 31));
  }
  return ValidateRope(config, where);
}

void WriteLlamaLayers(const ModelConfig& config, nlohmann::json* object) {
  (*object)["intermediate_size"] = config.intermediate_size;
  (*object)["num_key_value_heads"] = config.num_kv_heads;
  (*object)["head_dim"] = config.head_dim;
  (*object)["hidden_act"] = "silu";
  (*object)["rms_norm_eps"] = config.norm_eps;
  WriteRope(config, object);
}

OuterTensorNames LlamaOuterTensors(const ModelConfig&) {
  OuterTensorNames names;
  names.embedding = "model.embed_tokens.weight";
  names.final_norm = "model.norm.weight";
  names.head = "lm_head.weight";
  return names;
}

std::vector<ModelTensor> LlamaLayerTensors(const ModelConfig& config) {
  using Kind = ModelTensor::Kind;
  const std::int64_t d = config.hidden_size;
  const std::int64_t ff = config.intermediate_size;
  std::vector<ModelTensor> tensors;
  const auto norm = [&](const std::string& name) { tensors.push_back({name + ".weight", Kind::kNorm, -1, {d}}); };
  const auto linear = [&](const std::string& name, std::int64_t outputs, std::int64_t inputs, bool has_bias) {
    tensors.push_back({name + ".weight", Kind::kLinear, -1, {outputs, inputs}});
    if (has_bias) tensors.push_back({name + ".bias", Kind::kBias, -1, {outputs}});
  };
  norm("input_layernorm");
  linear("self_attn.q_proj", config.q_size(), d, config.attention_bias);
  linear("self_attn.k_proj", config.kv_size(), d, config.attention_bias);
  linear("self_attn.v_proj", config.kv_size(), d, config.attention_bias);
  linear("self_attn.o_proj", d, config.q_size(), config.attention_out_bias);
  norm("post_attention_layernorm");
  linear("mlp.gate_proj", ff, d, config.mlp_bias);
  linear("mlp.up_proj", ff, d, config.mlp_bias);
  linear("mlp.down_proj", d, ff, config.mlp_bias);
  return tensors;
}

}  // namespace qst
