// OPT, 125M to 66B. 350M is the odd one: norms behind attention and feed-forward part, none behind the last layer, and
// an embedding narrower than the layers.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/families/family.h"

namespace qst {
namespace {

constexpr double kNormEps = 1e-5;  // not a field of config.json

absl::Status Parse(ConfigReader& fields, ModelConfig* config) {
  config->hidden_size = fields.Int("hidden_size");
  config->intermediate_size = fields.Int("ffn_dim");
  config->num_layers = fields.Int("num_hidden_layers");
  config->num_heads = fields.Int("num_attention_heads");
  config->num_kv_heads = config->num_heads;
  config->max_position_embeddings = fields.Int("max_position_embeddings", 2048);
  if (fields.status().ok()) {
    if (config->num_heads <= 0 || config->hidden_size % config->num_heads != 0) {
      return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": hidden_size ", config->hidden_size,
                                                     " is no multiple of num_attention_heads ", config->num_heads));
    }
    config->head_dim = config->hidden_size / config->num_heads;
  }
  config->norm_eps = kNormEps;
  config->embedding_size = fields.Int("word_embed_proj_dim", config->hidden_size);
  config->tie_word_embeddings = fields.Bool("tie_word_embeddings", true);
  config->is_post_norm = !fields.Bool("do_layer_norm_before", true);
  config->has_norm_affine = fields.Bool("layer_norm_elementwise_affine", true);
  config->removes_final_norm = fields.Bool("_remove_final_layer_norm", false);
  config->attention_bias = fields.Bool("enable_bias", true);
  config->attention_out_bias = config->attention_bias;
  config->mlp_bias = config->attention_bias;
  const std::string activation = fields.String("activation_function", "relu");
  if (activation == "gelu") {
    config->activation = MlpActivation::kGelu;
  } else if (activation != "relu") {
    return UnsupportedConfig(
        fields.where(), absl::StrCat("activation_function '", activation, "' is not supported (relu and gelu are)"));
  }
  return absl::OkStatus();
}

absl::Status Validate(const ModelConfig& config, absl::string_view where) {
  return CheckConfigRange(where, "word_embed_proj_dim", config.embedding_width(), std::int64_t{1},
                          std::int64_t{1} << 18);
}

void Write(const ModelConfig& config, nlohmann::json* object) {
  (*object)["ffn_dim"] = config.intermediate_size;
  (*object)["word_embed_proj_dim"] = config.embedding_width();
  (*object)["do_layer_norm_before"] = !config.is_post_norm;
  (*object)["layer_norm_elementwise_affine"] = config.has_norm_affine;
  (*object)["_remove_final_layer_norm"] = config.removes_final_norm;
  (*object)["enable_bias"] = config.attention_bias;
  (*object)["activation_function"] = config.activation == MlpActivation::kGelu ? "gelu" : "relu";
}

OuterTensorNames OptOuterTensors(const ModelConfig& config) {
  OuterTensorNames names;
  names.embedding = "model.decoder.embed_tokens.weight";
  names.positions = "model.decoder.embed_positions.weight";
  if (config.has_projections()) {
    names.project_in = "model.decoder.project_in.weight";
    names.project_out = "model.decoder.project_out.weight";
  }
  if (config.has_final_norm() && config.has_norm_affine) {
    names.final_norm = "model.decoder.final_layer_norm.weight";
    names.final_norm_bias = "model.decoder.final_layer_norm.bias";
  }
  names.head = "lm_head.weight";
  return names;
}

std::vector<ModelTensor> LayerTensors(const ModelConfig& config) {
  using Kind = ModelTensor::Kind;
  const std::int64_t d = config.hidden_size;
  const std::int64_t ff = config.intermediate_size;
  std::vector<ModelTensor> tensors;
  const auto norm = [&](const std::string& name) {
    if (!config.has_norm_affine) return;
    tensors.push_back({name + ".weight", Kind::kNorm, -1, {d}});
    tensors.push_back({name + ".bias", Kind::kBias, -1, {d}});
  };
  const auto linear = [&](const std::string& name, std::int64_t outputs, std::int64_t inputs, bool has_bias) {
    tensors.push_back({name + ".weight", Kind::kLinear, -1, {outputs, inputs}});
    if (has_bias) tensors.push_back({name + ".bias", Kind::kBias, -1, {outputs}});
  };
  norm("self_attn_layer_norm");
  linear("self_attn.q_proj", d, d, config.attention_bias);
  linear("self_attn.k_proj", d, d, config.attention_bias);
  linear("self_attn.v_proj", d, d, config.attention_bias);
  linear("self_attn.out_proj", d, d, config.attention_out_bias);
  norm("final_layer_norm");
  linear("fc1", ff, d, config.mlp_bias);
  linear("fc2", d, ff, config.mlp_bias);
  return tensors;
}

}  // namespace

extern const FamilyDefinition kOptFamily;
const FamilyDefinition kOptFamily = {"OPTForCausalLM",
                                     "opt",
                                     ModelFamily::kOpt,
                                     /*gguf_architecture=*/nullptr,
                                     /*gguf_interleaves_heads=*/false,
                                     Parse,
                                     Validate,
                                     Write,
                                     OptOuterTensors,
                                     LayerTensors,
                                     "model.decoder.layers."};

}  // namespace qst
