#include "worker/checkpoint/model_config.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Json = nlohmann::json;

constexpr double kPi = 3.14159265358979323846;

// Access to fields of config.json with errors that name file and field. The first error is kept.
class FieldReader {
 public:
  FieldReader(const Json& object, absl::string_view where) : object_(object), where_(where) {}

  const absl::Status& status() const { return status_; }

  // Absent and null are the same: Hugging Face writes null for "not set".
  bool Has(const char* name) const {
    const auto it = object_.find(name);
    return it != object_.end() && !it->is_null();
  }
  std::int64_t Int(const char* name) { return ReadInt(name, std::nullopt); }
  std::int64_t Int(const char* name, std::int64_t fallback) { return ReadInt(name, fallback); }
  double Double(const char* name, double fallback) {
    if (!Has(name)) return fallback;
    const Json& value = object_[name];
    if (value.is_number()) return value.get<double>();
    Fail(absl::StrCat("field '", name, "' must be a number"));
    return fallback;
  }
  bool Bool(const char* name, bool fallback) {
    if (!Has(name)) return fallback;
    const Json& value = object_[name];
    if (value.is_boolean()) return value.get<bool>();
    Fail(absl::StrCat("field '", name, "' must be true or false"));
    return fallback;
  }
  std::string String(const char* name, const std::string& fallback) {
    if (!Has(name)) return fallback;
    const Json& value = object_[name];
    if (value.is_string()) return value.get<std::string>();
    Fail(absl::StrCat("field '", name, "' must be a string"));
    return fallback;
  }
  // One number or a list of numbers.
  std::vector<std::int64_t> Ints(const char* name) {
    std::vector<std::int64_t> numbers;
    if (!Has(name)) return numbers;
    const Json& value = object_[name];
    if (IsInt64(value)) return {value.get<std::int64_t>()};
    bool all_integers = value.is_array();
    if (all_integers) {
      for (const Json& item : value) {
        all_integers = all_integers && IsInt64(item);
        if (all_integers) numbers.push_back(item.get<std::int64_t>());
      }
    }
    if (!all_integers) {
      Fail(absl::StrCat("field '", name, "' must be an integer or a list of integers"));
      return {};
    }
    return numbers;
  }

 private:
  static bool IsInt64(const Json& value) {
    if (value.is_number_unsigned()) {
      return value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    }
    return value.is_number_integer();
  }
  std::int64_t ReadInt(const char* name, std::optional<std::int64_t> fallback) {
    if (!Has(name)) {
      if (!fallback.has_value()) Fail(absl::StrCat("field '", name, "' is missing"));
      return fallback.value_or(0);
    }
    const Json& value = object_[name];
    if (IsInt64(value)) return value.get<std::int64_t>();
    Fail(absl::StrCat("field '", name, "' must be an integer"));
    return fallback.value_or(0);
  }
  void Fail(const std::string& message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", message));
  }

  const Json& object_;
  absl::string_view where_;
  absl::Status status_;
};

absl::Status CheckRange(absl::string_view where, absl::string_view field, std::int64_t value, std::int64_t low,
                        std::int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", field, " is ", value, ", must be from ", low, " to ", high));
}

absl::Status CheckRange(absl::string_view where, absl::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();  // false for NaN
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", field, " is ", value, ", must be from ", low, " to ", high));
}

absl::Status Unsupported(absl::string_view where, absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat(where, ": ", what));
}

absl::StatusOr<RopeScaling> ParseRopeScaling(const Json& object, absl::string_view where) {
  RopeScaling scaling;
  FieldReader fields(object, where);
  const std::string type = fields.String("rope_type", fields.String("type", "default"));
  if (type == "linear") {
    scaling.type = RopeScalingType::kLinear;
  } else if (type == "llama3") {
    scaling.type = RopeScalingType::kLlama3;
  } else if (type != "default") {
    return Unsupported(where,
                       absl::StrCat("rotary scaling '", type, "' is not supported (default, linear, llama3 are)"));
  }
  if (scaling.type != RopeScalingType::kNone) {
    scaling.factor = fields.Double("factor", 1.0);
    scaling.low_freq_factor = fields.Double("low_freq_factor", 1.0);
    scaling.high_freq_factor = fields.Double("high_freq_factor", 4.0);
    scaling.original_max_position_embeddings = fields.Int("original_max_position_embeddings", 8192);
  }
  QST_RETURN_IF_ERROR(fields.status());
  return scaling;
}

// Refuses what would silently compute something else than the model's authors meant.
absl::Status CheckSupported(const Json& object, FieldReader& fields, const ModelConfig& config, bool accept_quantized,
                            absl::string_view where) {
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu") {
    return Unsupported(where, absl::StrCat("hidden_act '", activation, "' is not supported (silu is)"));
  }
  if (fields.Double("partial_rotary_factor", 1.0) != 1.0) {
    return Unsupported(where, "partial_rotary_factor other than 1 is not supported");
  }
  if (fields.Has("sliding_window") && fields.Bool("use_sliding_window", true)) {
    const std::int64_t window = fields.Int("sliding_window", 0);
    if (window < config.max_position_embeddings) {
      return Unsupported(where, absl::StrCat("a sliding window of ", window, " tokens, shorter than the context of ",
                                             config.max_position_embeddings, ", is not supported"));
    }
  }
  if (fields.Has("quantization_config") && !accept_quantized) {
    const Json& quantization = object["quantization_config"];
    const std::string method =
        quantization.is_object() && quantization.contains("quant_method") && quantization["quant_method"].is_string()
            ? quantization["quant_method"].get<std::string>()
            : "unknown";
    if (method == "bitsandbytes") return absl::OkStatus();  // the readers see what the weights are
    return Unsupported(where, absl::StrCat("the weights are already quantized (quantization_config, method '", method,
                                           "'); import the unquantized model"));
  }
  return absl::OkStatus();
}

Json NumberOrList(const std::vector<std::int64_t>& numbers) {
  if (numbers.empty()) return nullptr;
  if (numbers.size() == 1) return numbers[0];
  return numbers;
}

Json OptionalNumber(const std::optional<std::int64_t>& number) {
  return number.has_value() ? Json(*number) : Json(nullptr);
}

absl::StatusOr<ModelConfig> ParseConfig(absl::string_view json_text, bool accept_quantized, absl::string_view where) {
  const Json object = Json::parse(json_text.begin(), json_text.end(), nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded() || !object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " is not a JSON object"));
  }
  ModelConfig config;
  FieldReader fields(object, where);

  std::string architecture;
  if (const auto list = object.find("architectures");
      list != object.end() && list->is_array() && !list->empty() && list->front().is_string()) {
    architecture = list->front().get<std::string>();
  }
  config.model_type = fields.String("model_type", "");
  QST_RETURN_IF_ERROR(fields.status());
  const bool is_llama = architecture == "LlamaForCausalLM" || (architecture.empty() && config.model_type == "llama");
  const bool is_mistral =
      architecture == "MistralForCausalLM" || (architecture.empty() && config.model_type == "mistral");
  if (!is_llama && !is_mistral) {
    const std::string found = !architecture.empty()        ? architecture
                              : !config.model_type.empty() ? config.model_type
                                                           : "none named";
    return Unsupported(where, absl::StrCat("architecture '", found,
                                           "' is not supported (LlamaForCausalLM and MistralForCausalLM are)"));
  }
  config.architecture = is_llama ? "LlamaForCausalLM" : "MistralForCausalLM";
  config.model_type = is_llama ? "llama" : "mistral";

  config.vocab_size = fields.Int("vocab_size");
  config.hidden_size = fields.Int("hidden_size");
  config.intermediate_size = fields.Int("intermediate_size");
  config.num_layers = fields.Int("num_hidden_layers");
  config.num_heads = fields.Int("num_attention_heads");
  config.num_kv_heads = fields.Int("num_key_value_heads", config.num_heads);
  config.max_position_embeddings = fields.Int("max_position_embeddings", 2048);
  if (fields.Has("head_dim")) {
    config.head_dim = fields.Int("head_dim");
  } else if (fields.status().ok()) {
    if (config.num_heads <= 0 || config.hidden_size % config.num_heads != 0) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": hidden_size ", config.hidden_size,
                                                     " is no multiple of num_attention_heads ", config.num_heads));
    }
    config.head_dim = config.hidden_size / config.num_heads;
  }
  config.rms_norm_eps = fields.Double("rms_norm_eps", 1e-6);
  config.rope_theta = fields.Double("rope_theta", 10000.0);
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  config.attention_bias = fields.Bool("attention_bias", false);
  config.mlp_bias = fields.Bool("mlp_bias", false);
  const std::vector<std::int64_t> bos = fields.Ints("bos_token_id");
  if (!bos.empty()) config.bos_token_id = bos.front();
  config.eos_token_ids = fields.Ints("eos_token_id");
  if (fields.Has("pad_token_id")) config.pad_token_id = fields.Int("pad_token_id");
  config.torch_dtype = fields.String("torch_dtype", fields.String("dtype", "float32"));

  // Newer files gather everything rotary in rope_parameters; older ones have rope_theta beside rope_scaling.
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields.Has(name)) continue;
    const Json& value = object[name];
    if (!value.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": field '", name, "' must be an object"));
    }
    const std::string inner_where = absl::StrCat(where, ": ", name);
    QST_ASSIGN_OR_RETURN(config.rope_scaling, ParseRopeScaling(value, inner_where));
    FieldReader inner(value, inner_where);
    config.rope_theta = inner.Double("rope_theta", config.rope_theta);
    QST_RETURN_IF_ERROR(inner.status());
  }
  QST_RETURN_IF_ERROR(fields.status());
  const absl::Status supported = CheckSupported(object, fields, config, accept_quantized, where);
  QST_RETURN_IF_ERROR(fields.status());
  QST_RETURN_IF_ERROR(supported);
  QST_RETURN_IF_ERROR(ValidateModelConfig(config, where));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json_text, absl::string_view where) {
  return ParseConfig(json_text, /*accept_quantized=*/false, where);
}

absl::StatusOr<ModelConfig> ParseStoredModelConfig(absl::string_view json_text, absl::string_view where) {
  return ParseConfig(json_text, /*accept_quantized=*/true, where);
}

absl::Status ValidateModelConfig(const ModelConfig& config, absl::string_view where) {
  QST_RETURN_IF_ERROR(CheckRange(where, "vocab_size", config.vocab_size, 1, 1 << 24));
  QST_RETURN_IF_ERROR(CheckRange(where, "hidden_size", config.hidden_size, 1, 1 << 18));
  QST_RETURN_IF_ERROR(CheckRange(where, "intermediate_size", config.intermediate_size, 1, 1 << 20));
  QST_RETURN_IF_ERROR(CheckRange(where, "num_hidden_layers", config.num_layers, 1, 4096));
  QST_RETURN_IF_ERROR(CheckRange(where, "num_attention_heads", config.num_heads, 1, 4096));
  QST_RETURN_IF_ERROR(CheckRange(where, "num_key_value_heads", config.num_kv_heads, 1, config.num_heads));
  QST_RETURN_IF_ERROR(CheckRange(where, "head_dim", config.head_dim, 2, 4096));
  QST_RETURN_IF_ERROR(
      CheckRange(where, "max_position_embeddings", config.max_position_embeddings, 1, std::int64_t{1} << 31));
  QST_RETURN_IF_ERROR(CheckRange(where, "rms_norm_eps", config.rms_norm_eps, 1e-30, 1.0));
  QST_RETURN_IF_ERROR(CheckRange(where, "rope_theta", config.rope_theta, 1.0, 1e15));
  QST_RETURN_IF_ERROR(CheckRange(where, "rope_scaling factor", config.rope_scaling.factor, 1.0, 1e6));
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": head_dim is ", config.head_dim, ", must be even for the rotary embedding"));
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": num_attention_heads ", config.num_heads,
                                                   " is no multiple of num_key_value_heads ", config.num_kv_heads));
  }
  if (config.rope_scaling.type == RopeScalingType::kLlama3) {
    const RopeScaling& s = config.rope_scaling;
    QST_RETURN_IF_ERROR(CheckRange(where, "low_freq_factor", s.low_freq_factor, 1e-6, 1e6));
    QST_RETURN_IF_ERROR(CheckRange(where, "high_freq_factor", s.high_freq_factor, 1e-6, 1e6));
    QST_RETURN_IF_ERROR(CheckRange(where, "original_max_position_embeddings", s.original_max_position_embeddings, 1,
                                   std::int64_t{1} << 31));
    if (s.high_freq_factor <= s.low_freq_factor) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": high_freq_factor ", s.high_freq_factor,
                                                     " must be larger than low_freq_factor ", s.low_freq_factor));
    }
  }
  const auto check_token = [&](const char* field, std::int64_t id) {
    // Some published models name -1 or an id beyond the table for "none"; only huge ones are nonsense.
    return CheckRange(where, field, id, -1, (1 << 24) - 1);
  };
  if (config.bos_token_id.has_value()) QST_RETURN_IF_ERROR(check_token("bos_token_id", *config.bos_token_id));
  if (config.pad_token_id.has_value()) QST_RETURN_IF_ERROR(check_token("pad_token_id", *config.pad_token_id));
  for (const std::int64_t id : config.eos_token_ids) QST_RETURN_IF_ERROR(check_token("eos_token_id", id));
  return absl::OkStatus();
}

std::string ModelConfigToJson(const ModelConfig& config, const std::string& quantization_config) {
  Json object;
  object["architectures"] = Json::array({config.architecture});
  object["model_type"] = config.model_type;
  object["vocab_size"] = config.vocab_size;
  object["hidden_size"] = config.hidden_size;
  object["intermediate_size"] = config.intermediate_size;
  object["num_hidden_layers"] = config.num_layers;
  object["num_attention_heads"] = config.num_heads;
  object["num_key_value_heads"] = config.num_kv_heads;
  object["head_dim"] = config.head_dim;
  object["max_position_embeddings"] = config.max_position_embeddings;
  object["hidden_act"] = "silu";
  object["rms_norm_eps"] = config.rms_norm_eps;
  object["rope_theta"] = config.rope_theta;
  object["rope_scaling"] = nullptr;
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.type == RopeScalingType::kLinear) {
    object["rope_scaling"] = Json{{"rope_type", "linear"}, {"factor", scaling.factor}};
  } else if (scaling.type == RopeScalingType::kLlama3) {
    object["rope_scaling"] = Json{{"rope_type", "llama3"},
                                  {"factor", scaling.factor},
                                  {"low_freq_factor", scaling.low_freq_factor},
                                  {"high_freq_factor", scaling.high_freq_factor},
                                  {"original_max_position_embeddings", scaling.original_max_position_embeddings}};
  }
  if (config.model_type == "mistral") object["sliding_window"] = nullptr;
  object["tie_word_embeddings"] = config.tie_word_embeddings;
  object["attention_bias"] = config.attention_bias;
  object["mlp_bias"] = config.mlp_bias;
  object["bos_token_id"] = OptionalNumber(config.bos_token_id);
  object["eos_token_id"] = NumberOrList(config.eos_token_ids);
  object["pad_token_id"] = OptionalNumber(config.pad_token_id);
  object["torch_dtype"] = config.torch_dtype;
  object["use_cache"] = true;
  if (!quantization_config.empty()) {
    object["quantization_config"] = Json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  }
  return object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<float> RotaryInverseFrequencies(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  std::vector<float> frequencies(static_cast<std::size_t>(config.head_dim / 2));
  for (std::size_t j = 0; j < frequencies.size(); ++j) {
    double frequency =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(j) / static_cast<double>(config.head_dim));
    if (scaling.type == RopeScalingType::kLinear) {
      frequency /= scaling.factor;
    } else if (scaling.type == RopeScalingType::kLlama3) {
      // Long waves are stretched, short ones kept, those between blended linearly in 1 / wavelength.
      const double turns = static_cast<double>(scaling.original_max_position_embeddings) * frequency / (2.0 * kPi);
      if (turns < scaling.low_freq_factor) {
        frequency /= scaling.factor;
      } else if (turns <= scaling.high_freq_factor) {
        const double kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
        frequency = (1.0 - kept) * frequency / scaling.factor + kept * frequency;
      }
    }
    frequencies[j] = static_cast<float>(frequency);
  }
  return frequencies;
}

std::int64_t ModelTensor::num_elems() const {
  std::int64_t product = 1;
  for (const std::int64_t dim : shape) product *= dim;
  return product;
}

std::int64_t ModelConfig::NumParameters() const {
  std::int64_t sum = 0;
  for (const ModelTensor& tensor : ModelTensors(*this)) sum += tensor.num_elems();
  return sum;
}

std::vector<ModelTensor> ModelTensors(const ModelConfig& config) {
  using Kind = ModelTensor::Kind;
  std::vector<ModelTensor> tensors;
  const std::int64_t d = config.hidden_size;
  const std::int64_t ff = config.intermediate_size;
  tensors.push_back({"model.embed_tokens.weight", Kind::kEmbedding, -1, {config.vocab_size, d}});
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const auto linear = [&](const char* name, std::int64_t outputs, std::int64_t inputs, bool has_bias) {
      tensors.push_back({absl::StrCat(prefix, name, ".weight"), Kind::kLinear, layer, {outputs, inputs}});
      if (has_bias) tensors.push_back({absl::StrCat(prefix, name, ".bias"), Kind::kBias, layer, {outputs}});
    };
    tensors.push_back({prefix + "input_layernorm.weight", Kind::kNorm, layer, {d}});
    linear("self_attn.q_proj", config.q_size(), d, config.attention_bias);
    linear("self_attn.k_proj", config.kv_size(), d, config.attention_bias);
    linear("self_attn.v_proj", config.kv_size(), d, config.attention_bias);
    linear("self_attn.o_proj", d, config.q_size(), config.attention_bias);
    tensors.push_back({prefix + "post_attention_layernorm.weight", Kind::kNorm, layer, {d}});
    linear("mlp.gate_proj", ff, d, config.mlp_bias);
    linear("mlp.up_proj", ff, d, config.mlp_bias);
    linear("mlp.down_proj", d, ff, config.mlp_bias);
  }
  tensors.push_back({"model.norm.weight", Kind::kNorm, -1, {d}});
  if (!config.tie_word_embeddings) {
    tensors.push_back({"lm_head.weight", Kind::kHead, -1, {config.vocab_size, d}});
  }
  return tensors;
}

}  // namespace qst
