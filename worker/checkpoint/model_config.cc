#include "worker/checkpoint/model_config.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/config_reader.h"
#include "worker/checkpoint/families/family.h"

namespace qst {
namespace {

using Json = nlohmann::json;

constexpr double kPi = 3.14159265358979323846;

Json NumberOrList(const std::vector<std::int64_t>& numbers) {
  if (numbers.empty()) return nullptr;
  if (numbers.size() == 1) return numbers[0];
  return numbers;
}

Json OptionalNumber(const std::optional<std::int64_t>& number) {
  return number.has_value() ? Json(*number) : Json(nullptr);
}

absl::StatusOr<const FamilyDefinition*> FamilyOfFile(ConfigReader& fields) {
  std::string architecture;
  if (const auto list = fields.object().find("architectures");
      list != fields.object().end() && list->is_array() && !list->empty() && list->front().is_string()) {
    architecture = list->front().get<std::string>();
  }
  const std::string model_type = fields.String("model_type", "");
  QST_RETURN_IF_ERROR(fields.status());
  const FamilyDefinition* const family = FindFamily(architecture, model_type);
  if (family != nullptr) return family;
  const std::string found = !architecture.empty() ? architecture : !model_type.empty() ? model_type : "none named";
  const std::string known = absl::StrJoin(
      AllFamilies(), ", ", [](std::string* out, const FamilyDefinition* known) { out->append(known->architecture); });
  return UnsupportedConfig(fields.where(),
                           absl::StrCat("architecture '", found, "' is not supported (", known, " are)"));
}

absl::Status CheckUnquantized(ConfigReader& fields) {
  if (!fields.Has("quantization_config")) return absl::OkStatus();
  const Json& quantization = fields.object()["quantization_config"];
  const std::string method =
      quantization.is_object() && quantization.contains("quant_method") && quantization["quant_method"].is_string()
          ? quantization["quant_method"].get<std::string>()
          : "unknown";
  if (method == "bitsandbytes") return absl::OkStatus();  // the readers see what the weights are
  return UnsupportedConfig(fields.where(),
                           absl::StrCat("the weights are already quantized (quantization_config, method '", method,
                                        "'); import the unquantized model"));
}

absl::StatusOr<ModelConfig> ParseConfig(absl::string_view json_text, bool accept_quantized, absl::string_view where) {
  const Json object = Json::parse(json_text.begin(), json_text.end(), nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded() || !object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " is not a JSON object"));
  }
  ModelConfig config;
  ConfigReader fields(object, where);
  QST_ASSIGN_OR_RETURN(const FamilyDefinition* const family, FamilyOfFile(fields));
  config.family = family->layers;
  config.architecture = family->architecture;
  config.model_type = family->model_type;

  config.vocab_size = fields.Int("vocab_size");
  const std::vector<std::int64_t> bos = fields.Ints("bos_token_id");
  if (!bos.empty()) config.bos_token_id = bos.front();
  config.eos_token_ids = fields.Ints("eos_token_id");
  if (fields.Has("pad_token_id")) config.pad_token_id = fields.Int("pad_token_id");
  config.torch_dtype = fields.String("torch_dtype", fields.String("dtype", "float32"));
  const absl::Status parsed = family->parse(fields, &config);
  QST_RETURN_IF_ERROR(fields.status());
  QST_RETURN_IF_ERROR(parsed);
  if (!accept_quantized) QST_RETURN_IF_ERROR(CheckUnquantized(fields));
  QST_RETURN_IF_ERROR(ValidateModelConfig(config, where));
  return config;
}

}  // namespace

const char* ModelFamilyName(ModelFamily family) { return family == ModelFamily::kLlama ? "llama" : "opt"; }

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json_text, absl::string_view where) {
  return ParseConfig(json_text, /*accept_quantized=*/false, where);
}

absl::StatusOr<ModelConfig> ParseStoredModelConfig(absl::string_view json_text, absl::string_view where) {
  return ParseConfig(json_text, /*accept_quantized=*/true, where);
}

absl::Status ValidateModelConfig(const ModelConfig& config, absl::string_view where) {
  const auto check = [&](const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
    return CheckConfigRange(where, field, value, low, high);
  };
  QST_RETURN_IF_ERROR(check("vocab_size", config.vocab_size, 1, 1 << 24));
  QST_RETURN_IF_ERROR(check("hidden_size", config.hidden_size, 1, 1 << 18));
  QST_RETURN_IF_ERROR(check("intermediate_size", config.intermediate_size, 1, 1 << 20));
  QST_RETURN_IF_ERROR(check("num_hidden_layers", config.num_layers, 1, 4096));
  QST_RETURN_IF_ERROR(check("num_attention_heads", config.num_heads, 1, 4096));
  QST_RETURN_IF_ERROR(check("num_key_value_heads", config.num_kv_heads, 1, config.num_heads));
  QST_RETURN_IF_ERROR(check("head_dim", config.head_dim, 1, 4096));
  QST_RETURN_IF_ERROR(check("max_position_embeddings", config.max_position_embeddings, 1, std::int64_t{1} << 31));
  QST_RETURN_IF_ERROR(CheckConfigRange(where, "norm eps", config.norm_eps, 1e-30, 1.0));
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": num_attention_heads ", config.num_heads,
                                                   " is no multiple of num_key_value_heads ", config.num_kv_heads));
  }
  // Some published models name -1 or an id beyond the table for "none"; only huge ones are nonsense.
  constexpr std::int64_t kMaxToken = (1 << 24) - 1;
  if (config.bos_token_id.has_value()) QST_RETURN_IF_ERROR(check("bos_token_id", *config.bos_token_id, -1, kMaxToken));
  if (config.pad_token_id.has_value()) QST_RETURN_IF_ERROR(check("pad_token_id", *config.pad_token_id, -1, kMaxToken));
  for (const std::int64_t id : config.eos_token_ids) QST_RETURN_IF_ERROR(check("eos_token_id", id, -1, kMaxToken));
  return FamilyOf(config).validate(config, where);
}

std::string ModelConfigToJson(const ModelConfig& config, const std::string& quantization_config) {
  Json object;
  object["architectures"] = Json::array({config.architecture});
  object["model_type"] = config.model_type;
  object["vocab_size"] = config.vocab_size;
  object["hidden_size"] = config.hidden_size;
  object["num_hidden_layers"] = config.num_layers;
  object["num_attention_heads"] = config.num_heads;
  object["max_position_embeddings"] = config.max_position_embeddings;
  object["tie_word_embeddings"] = config.tie_word_embeddings;
  object["bos_token_id"] = OptionalNumber(config.bos_token_id);
  object["eos_token_id"] = NumberOrList(config.eos_token_ids);
  object["pad_token_id"] = OptionalNumber(config.pad_token_id);
  object["torch_dtype"] = config.torch_dtype;
  object["use_cache"] = true;
  FamilyOf(config).write(config, &object);
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

std::int64_t ModelConfig::position_rows() const {
  return family == ModelFamily::kOpt ? max_position_embeddings + kOptPositionOffset : 0;
}

std::int64_t ModelConfig::NumParameters() const {
  std::int64_t sum = 0;
  for (const ModelTensor& tensor : ModelTensors(*this)) sum += tensor.num_elems();
  return sum;
}

OuterTensorNames OuterTensors(const ModelConfig& config) {
  OuterTensorNames names = FamilyOf(config).outer_tensors(config);
  if (config.tie_word_embeddings) names.head = names.embedding;
  return names;
}

std::string LayerPrefix(const ModelConfig& config, std::int64_t layer) {
  return absl::StrCat(FamilyOf(config).layer_prefix, layer, ".");
}

std::vector<ModelTensor> ModelTensors(const ModelConfig& config) {
  using Kind = ModelTensor::Kind;
  const std::int64_t d = config.hidden_size;
  const std::int64_t e = config.embedding_width();
  const OuterTensorNames outer = OuterTensors(config);
  std::vector<ModelTensor> tensors;
  const auto add_outer = [&](const std::string& name, Kind kind, std::vector<std::int64_t> shape, bool is_output) {
    if (!name.empty()) tensors.push_back({name, kind, -1, std::move(shape), is_output});
  };
  add_outer(outer.embedding, Kind::kEmbedding, {config.vocab_size, e}, false);
  add_outer(outer.positions, Kind::kPositions, {config.position_rows(), d}, false);
  add_outer(outer.project_in, Kind::kLinear, {d, e}, false);
  const std::vector<ModelTensor> layer_tensors = FamilyOf(config).layer_tensors(config);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = LayerPrefix(config, layer);
    for (ModelTensor tensor : layer_tensors) {
      tensor.name = prefix + tensor.name;
      tensor.layer = layer;
      tensors.push_back(std::move(tensor));
    }
  }
  add_outer(outer.final_norm, Kind::kNorm, {d}, true);
  add_outer(outer.final_norm_bias, Kind::kBias, {d}, true);
  add_outer(outer.project_out, Kind::kLinear, {e, d}, true);
  if (!config.tie_word_embeddings) add_outer(outer.head, Kind::kHead, {config.vocab_size, e}, true);
  return tensors;
}

}  // namespace qst
