#include "worker/side/side_config.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kGateOrientation[] = "side_state";
constexpr int kFormatVersion = 1;

// Enum values are written as in job files: lower case, without their type's prefix.
constexpr char kPresetPrefix[] = "SIDE_PRESET_";
constexpr char kDownsamplePrefix[] = "DOWNSAMPLE_";
constexpr char kTaskPrefix[] = "TASK_TYPE_";

std::string EnumText(const std::string& full_name, absl::string_view prefix) {
  return absl::AsciiStrToLower(absl::string_view(full_name).substr(prefix.size()));
}

std::string EnumFullName(const std::string& text, absl::string_view prefix) {
  return absl::StrCat(prefix, absl::AsciiStrToUpper(text));
}

std::int64_t RoundUp(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

absl::Status CheckFinite(const char* field, double value) {
  if (std::isfinite(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("side.", field, ": must be a finite number"));
}

absl::Status CheckBackbone(const BackboneDims& dims) {
  if (dims.family != "llama" && dims.family != "opt") {
    return absl::UnimplementedError(
        absl::StrCat("side network: no side layer for backbone family \"", dims.family, "\"; known: llama, opt"));
  }
  const bool is_sane =
      dims.num_layers >= 1 && dims.num_layers <= 4096 && dims.hidden_size >= 1 && dims.hidden_size <= (1 << 20) &&
      dims.intermediate_size >= 1 && dims.intermediate_size <= (1 << 24) && dims.num_heads >= 1 &&
      dims.num_heads <= dims.hidden_size && dims.num_kv_heads >= 1 && dims.num_heads % dims.num_kv_heads == 0 &&
      dims.vocab_size >= 1 && dims.vocab_size <= (1 << 28) && dims.norm_eps > 0.0f && std::isfinite(dims.norm_eps) &&
      dims.rope_theta > 0.0 && std::isfinite(dims.rope_theta) && dims.embedding_size >= 0 &&
      dims.embedding_size <= (1 << 20);
  if (is_sane) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("side network: impossible backbone: ", dims.num_layers, " layers, hidden size ", dims.hidden_size,
                   ", intermediate size ", dims.intermediate_size, ", ", dims.num_heads, " heads, ", dims.num_kv_heads,
                   " key-value heads, vocabulary ", dims.vocab_size, ", norm eps ", dims.norm_eps, ", rope theta ",
                   dims.rope_theta, ", embedding size ", dims.embedding_size));
}

// Checks the resolved fields and works out the widths.
absl::Status Finish(SideNetworkConfig* config) {
  QST_RETURN_IF_ERROR(CheckBackbone(config->backbone));
  const BackboneDims& dims = config->backbone;
  if (config->reduction < 1 || config->reduction > dims.hidden_size) {
    return absl::InvalidArgumentError(absl::StrCat("side.reduction: ", config->reduction, " is not in [1, ",
                                                   dims.hidden_size, "], the model's hidden size"));
  }
  if (config->rank < 1 || config->rank > dims.hidden_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("side.rank: ", config->rank, " is not in [1, ", dims.hidden_size, "], the model's hidden size"));
  }
  QST_RETURN_IF_ERROR(CheckFinite("gate_init", config->gate_init));
  QST_RETURN_IF_ERROR(CheckFinite("mix_init", config->mix_init));
  QST_RETURN_IF_ERROR(CheckFinite("gate_lr_scale", config->gate_lr_scale));
  if (config->gate_lr_scale < 0.0) {
    return absl::InvalidArgumentError("side.gate_lr_scale: must not be negative");
  }
  if (config->is_classification()) {
    if (config->num_classes() < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("task.labels: classification needs at least 2 labels, has ", config->num_classes()));
    }
  } else if (!config->has_side_network() && !config->has_score_head()) {
    return absl::InvalidArgumentError(
        "side.preset: probe trains only a head, so task.type must be classification or regression");
  }
  const std::int64_t parts = config->reduction * dims.num_heads;
  config->head_dim = RoundUp((dims.hidden_size + parts - 1) / parts, dims.is_opt() ? 1 : 2);
  config->hidden_size = config->head_dim * dims.num_heads;
  config->intermediate_size = RoundUp((dims.intermediate_size + config->reduction - 1) / config->reduction, 8);
  if (config->has_side_network() && config->hidden_size > dims.hidden_size) {
    const bool pools = config->downsample == v1::DOWNSAMPLE_MAXPOOL || config->downsample == v1::DOWNSAMPLE_AVGPOOL;
    if (pools) {
      return absl::InvalidArgumentError(absl::StrCat(
          "side.downsample: pooling cannot widen: the side network has ", config->hidden_size, " channels (heads of ",
          config->head_dim, "), the model ", dims.hidden_size, "; use adapter, lora or linear"));
    }
  }
  return absl::OkStatus();
}

// Fields of a JSON object with errors that name them.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  template <typename T>
  void Get(const char* name, T* value) {
    if (!status_.ok()) return;
    const auto it = object_.find(name);
    if (it == object_.end()) {
      status_ = absl::InvalidArgumentError(absl::StrCat("side_config.json: field \"", name, "\" is missing"));
      return;
    }
    try {
      if constexpr (std::is_same_v<T, std::int64_t>) {
        if (!it->is_number_integer()) throw std::invalid_argument("not an integer");
      }
      if constexpr (std::is_same_v<T, bool>) {
        if (!it->is_boolean()) throw std::invalid_argument("not a boolean");
      }
      it->get_to(*value);
    } catch (const std::exception&) {
      status_ = absl::InvalidArgumentError(absl::StrCat("side_config.json: field \"", name, "\" has the wrong type"));
    }
  }

  template <typename Enum, typename Parse>
  void GetEnum(const char* name, absl::string_view prefix, Parse parse, Enum* value) {
    std::string text;
    Get(name, &text);
    if (!status_.ok()) return;
    if (!parse(EnumFullName(text, prefix), value) || static_cast<int>(*value) == 0) {
      status_ = absl::InvalidArgumentError(absl::StrCat("side_config.json: ", name, ": unknown value \"", text, "\""));
    }
  }

  const absl::Status& status() const { return status_; }

 private:
  const Json& object_;
  absl::Status status_;
};

absl::Status GetOptFields(Fields* fields, SideNetworkConfig* config) {
  std::string activation;
  fields->Get("embedding_size", &config->backbone.embedding_size);
  fields->Get("activation", &activation);
  fields->Get("has_bias", &config->backbone.has_bias);
  fields->Get("is_post_norm", &config->backbone.is_post_norm);
  fields->Get("has_norm_affine", &config->backbone.has_norm_affine);
  fields->Get("has_final_norm", &config->backbone.has_final_norm);
  fields->Get("frozen_mlp_norm", &config->frozen_mlp_norm);
  fields->Get("mix_weighs_side", &config->mix_weighs_side);
  QST_RETURN_IF_ERROR(fields->status());
  if (activation != "relu" && activation != "gelu") {
    return absl::InvalidArgumentError(
        absl::StrCat("side_config.json: activation: unknown value \"", activation, "\"; known: relu, gelu"));
  }
  config->backbone.activation = activation == "gelu" ? Activation::kGelu : Activation::kRelu;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SideNetworkConfig> ResolveSideConfig(const v1::SideConfig& side, v1::TaskType task,
                                                    const std::vector<std::string>& labels,
                                                    const BackboneDims& backbone) {
  SideNetworkConfig config;
  config.backbone = backbone;
  config.task = task == v1::TASK_TYPE_UNSPECIFIED ? v1::TASK_TYPE_CAUSAL_LM : task;
  if (config.is_classification()) config.labels = labels;
  config.preset = side.preset() == v1::SIDE_PRESET_UNSPECIFIED ? v1::SIDE_PRESET_TUNED : side.preset();
  const bool is_reference = config.preset == v1::SIDE_PRESET_REFERENCE;
  const bool is_tuned = config.preset == v1::SIDE_PRESET_TUNED;
  const double default_scale = is_tuned ? kTunedGateLrScale : 1.0;
  config.reduction = side.reduction() == 0 ? 16 : side.reduction();
  config.downsample = side.downsample() == v1::DOWNSAMPLE_UNSPECIFIED ? v1::DOWNSAMPLE_ADAPTER : side.downsample();
  config.rank = side.rank() == 0 ? 16 : side.rank();
  config.gate_lr_scale = side.has_gate_lr_scale() ? side.gate_lr_scale() : default_scale;
  config.gate_init = side.has_gate_init() ? side.gate_init() : (is_reference ? 0.5 : 0.0);
  config.gate_per_channel = side.has_gate_per_channel() ? side.gate_per_channel() : is_reference;
  config.frozen_mlp_norm = is_reference && backbone.is_opt();
  config.mix_weighs_side = is_reference && backbone.is_opt();
  const double default_mix = config.mix_weighs_side && config.has_score_head() ? 0.0 : 1.0;
  config.mix_init = side.has_mix_init() ? side.mix_init() : default_mix;
  config.sigmoid_mix = side.has_sigmoid_mix() ? side.sigmoid_mix() : is_reference;
  config.downsample_norm = side.has_downsample_norm() ? side.downsample_norm() : (is_reference || is_tuned);
  config.share_first_downsample = side.has_share_first_downsample() ? side.share_first_downsample() : is_reference;
  config.upsample_bias = side.has_upsample_bias() ? side.upsample_bias() : true;
  QST_RETURN_IF_ERROR(Finish(&config));
  return config;
}

SideNetworkConfig ProbeOf(SideNetworkConfig config) {
  config.preset = v1::SIDE_PRESET_PROBE;
  return config;
}

std::string SideConfigToJson(const SideNetworkConfig& config) {
  Json json;
  json["format"] = "qst-side-network";
  json["format_version"] = kFormatVersion;
  json["base_model"] = config.base_model;
  json["family"] = config.backbone.family;
  json["task"] = EnumText(v1::TaskType_Name(config.task), kTaskPrefix);
  json["labels"] = config.labels;
  json["preset"] = EnumText(v1::SidePreset_Name(config.preset), kPresetPrefix);
  json["gate_orientation"] = kGateOrientation;
  json["reduction"] = config.reduction;
  json["downsample"] = EnumText(v1::Downsample_Name(config.downsample), kDownsamplePrefix);
  json["rank"] = config.rank;
  json["gate_lr_scale"] = config.gate_lr_scale;
  json["gate_init"] = config.gate_init;
  json["gate_per_channel"] = config.gate_per_channel;
  json["mix_init"] = config.mix_init;
  json["sigmoid_mix"] = config.sigmoid_mix;
  json["downsample_norm"] = config.downsample_norm;
  json["share_first_downsample"] = config.share_first_downsample;
  json["upsample_bias"] = config.upsample_bias;
  json["hidden_size"] = config.hidden_size;
  json["head_dim"] = config.head_dim;
  json["intermediate_size"] = config.intermediate_size;
  json["backbone_num_layers"] = config.backbone.num_layers;
  json["backbone_hidden_size"] = config.backbone.hidden_size;
  json["backbone_intermediate_size"] = config.backbone.intermediate_size;
  json["num_heads"] = config.backbone.num_heads;
  json["num_kv_heads"] = config.backbone.num_kv_heads;
  json["vocab_size"] = config.backbone.vocab_size;
  json["norm_eps"] = config.backbone.norm_eps;
  if (config.backbone.is_opt()) {
    json["embedding_size"] = config.backbone.output_width();
    json["activation"] = config.backbone.activation == Activation::kGelu ? "gelu" : "relu";
    json["has_bias"] = config.backbone.has_bias;
    json["is_post_norm"] = config.backbone.is_post_norm;
    json["has_norm_affine"] = config.backbone.has_norm_affine;
    json["has_final_norm"] = config.backbone.has_final_norm;
    json["frozen_mlp_norm"] = config.frozen_mlp_norm;
    json["mix_weighs_side"] = config.mix_weighs_side;
  } else {
    json["rope_theta"] = config.backbone.rope_theta;
  }
  // Labels come from users' files; what is not UTF-8 there must not throw here.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<SideNetworkConfig> SideConfigFromJson(absl::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError("side_config.json: not a JSON object");
  }
  SideNetworkConfig config;
  std::string format;
  std::string orientation;
  std::int64_t version = 0;
  double norm_eps = 0.0;
  std::int64_t hidden_size = 0;
  std::int64_t head_dim = 0;
  std::int64_t intermediate_size = 0;
  Fields fields(json);
  fields.Get("format", &format);
  fields.Get("format_version", &version);
  fields.Get("base_model", &config.base_model);
  fields.Get("family", &config.backbone.family);
  fields.GetEnum(
      "task", kTaskPrefix, [](const std::string& s, v1::TaskType* v) { return v1::TaskType_Parse(s, v); },
      &config.task);
  fields.Get("labels", &config.labels);
  fields.GetEnum(
      "preset", kPresetPrefix, [](const std::string& s, v1::SidePreset* v) { return v1::SidePreset_Parse(s, v); },
      &config.preset);
  fields.Get("gate_orientation", &orientation);
  fields.Get("reduction", &config.reduction);
  fields.GetEnum(
      "downsample", kDownsamplePrefix,
      [](const std::string& s, v1::Downsample* v) { return v1::Downsample_Parse(s, v); }, &config.downsample);
  fields.Get("rank", &config.rank);
  fields.Get("gate_lr_scale", &config.gate_lr_scale);
  fields.Get("gate_init", &config.gate_init);
  fields.Get("gate_per_channel", &config.gate_per_channel);
  fields.Get("mix_init", &config.mix_init);
  fields.Get("sigmoid_mix", &config.sigmoid_mix);
  fields.Get("downsample_norm", &config.downsample_norm);
  fields.Get("share_first_downsample", &config.share_first_downsample);
  fields.Get("upsample_bias", &config.upsample_bias);
  fields.Get("hidden_size", &hidden_size);
  fields.Get("head_dim", &head_dim);
  fields.Get("intermediate_size", &intermediate_size);
  fields.Get("backbone_num_layers", &config.backbone.num_layers);
  fields.Get("backbone_hidden_size", &config.backbone.hidden_size);
  fields.Get("backbone_intermediate_size", &config.backbone.intermediate_size);
  fields.Get("num_heads", &config.backbone.num_heads);
  fields.Get("num_kv_heads", &config.backbone.num_kv_heads);
  fields.Get("vocab_size", &config.backbone.vocab_size);
  fields.Get("norm_eps", &norm_eps);
  if (config.backbone.is_opt()) {
    QST_RETURN_IF_ERROR(GetOptFields(&fields, &config));
  } else {
    fields.Get("rope_theta", &config.backbone.rope_theta);
  }
  QST_RETURN_IF_ERROR(fields.status());
  config.backbone.norm_eps = static_cast<float>(norm_eps);
  if (format != "qst-side-network" || version != kFormatVersion) {
    return absl::InvalidArgumentError(absl::StrCat("side_config.json: format \"", format, "\" version ", version,
                                                   " is not known; this build reads \"qst-side-network\" version ",
                                                   kFormatVersion));
  }
  if (orientation != kGateOrientation) {
    return absl::InvalidArgumentError(
        absl::StrCat("side_config.json: gate_orientation \"", orientation, "\" is not known; known: side_state"));
  }
  QST_RETURN_IF_ERROR(Annotate(Finish(&config), "side_config.json"));
  if (config.hidden_size != hidden_size || config.head_dim != head_dim ||
      config.intermediate_size != intermediate_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("side_config.json: hidden_size ", hidden_size, ", head_dim ", head_dim, ", intermediate_size ",
                     intermediate_size, " do not follow from the backbone and reduction: expected ", config.hidden_size,
                     ", ", config.head_dim, ", ", config.intermediate_size));
  }
  return config;
}

}  // namespace qst
