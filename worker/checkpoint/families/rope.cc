#include "worker/checkpoint/families/rope.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Json = nlohmann::json;

absl::StatusOr<RopeScaling> ParseScaling(ConfigReader& fields, std::int64_t max_position_embeddings) {
  RopeScaling scaling;
  const std::string type = fields.String("rope_type", fields.String("type", "default"));
  if (type == "linear") {
    scaling.type = RopeScalingType::kLinear;
  } else if (type == "dynamic") {
    scaling.type = RopeScalingType::kDynamic;
    if (fields.Int("original_max_position_embeddings", max_position_embeddings) != max_position_embeddings) {
      return UnsupportedConfig(fields.where(),
                               "dynamic rotary scaling with an original_max_position_embeddings other than "
                               "max_position_embeddings is not supported");
    }
  } else if (type == "llama3") {
    scaling.type = RopeScalingType::kLlama3;
  } else if (type != "default") {
    return UnsupportedConfig(fields.where(), absl::StrCat("rotary scaling '", type,
                                                          "' is not supported (default, linear, dynamic, llama3 are)"));
  }
  if (scaling.type != RopeScalingType::kNone) scaling.factor = fields.Double("factor", 1.0);
  if (scaling.type == RopeScalingType::kLlama3) {
    scaling.low_freq_factor = fields.Double("low_freq_factor", 1.0);
    scaling.high_freq_factor = fields.Double("high_freq_factor", 4.0);
    scaling.original_max_position_embeddings = fields.Int("original_max_position_embeddings", 8192);
  }
  QST_RETURN_IF_ERROR(fields.status());
  return scaling;
}

}  // namespace

absl::Status ParseRope(ConfigReader& fields, ModelConfig* config) {
  config->rope_theta = fields.Double("rope_theta", 10000.0);
  if (fields.Double("partial_rotary_factor", 1.0) != 1.0) {
    return UnsupportedConfig(fields.where(), "partial_rotary_factor other than 1 is not supported");
  }
  // Newer files gather everything rotary in rope_parameters; older ones have rope_theta beside rope_scaling.
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields.Has(name)) continue;
    const Json& value = fields.object()[name];
    if (!value.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": field '", name, "' must be an object"));
    }
    ConfigReader inner(value, absl::StrCat(fields.where(), ": ", name));
    QST_ASSIGN_OR_RETURN(config->rope_scaling, ParseScaling(inner, config->max_position_embeddings));
    config->rope_theta = inner.Double("rope_theta", config->rope_theta);
    if (inner.Double("partial_rotary_factor", 1.0) != 1.0) {
      return UnsupportedConfig(inner.where(), "partial_rotary_factor other than 1 is not supported");
    }
    QST_RETURN_IF_ERROR(inner.status());
  }
  return absl::OkStatus();
}

absl::Status ValidateRope(const ModelConfig& config, absl::string_view where) {
  const RopeScaling& s = config.rope_scaling;
  QST_RETURN_IF_ERROR(CheckConfigRange(where, "rope_theta", config.rope_theta, 1.0, 1e15));
  QST_RETURN_IF_ERROR(CheckConfigRange(where, "rope_scaling factor", s.factor, 1.0, 1e6));
  if (s.type != RopeScalingType::kLlama3) return absl::OkStatus();
  QST_RETURN_IF_ERROR(CheckConfigRange(where, "low_freq_factor", s.low_freq_factor, 1e-6, 1e6));
  QST_RETURN_IF_ERROR(CheckConfigRange(where, "high_freq_factor", s.high_freq_factor, 1e-6, 1e6));
  QST_RETURN_IF_ERROR(CheckConfigRange(where, "original_max_position_embeddings", s.original_max_position_embeddings,
                                       std::int64_t{1}, std::int64_t{1} << 31));
  if (s.high_freq_factor <= s.low_freq_factor) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": high_freq_factor ", s.high_freq_factor,
                                                   " must be larger than low_freq_factor ", s.low_freq_factor));
  }
  return absl::OkStatus();
}

void WriteRope(const ModelConfig& config, Json* object) {
  const RopeScaling& scaling = config.rope_scaling;
  (*object)["rope_theta"] = config.rope_theta;
  Json& out = (*object)["rope_scaling"];
  switch (scaling.type) {
    case RopeScalingType::kNone:
      out = nullptr;
      break;
    case RopeScalingType::kLinear:
      out = Json{{"rope_type", "linear"}, {"factor", scaling.factor}};
      break;
    case RopeScalingType::kDynamic:
      out = Json{{"rope_type", "dynamic"}, {"factor", scaling.factor}};
      break;
    case RopeScalingType::kLlama3:
      out = Json{{"rope_type", "llama3"},
                 {"factor", scaling.factor},
                 {"low_freq_factor", scaling.low_freq_factor},
                 {"high_freq_factor", scaling.high_freq_factor},
                 {"original_max_position_embeddings", scaling.original_max_position_embeddings}};
      break;
  }
}

}  // namespace qst
