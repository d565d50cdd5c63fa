// The rotary fields of config.json: rope_theta, rope_scaling, rope_parameters.
#ifndef QST_WORKER_CHECKPOINT_FAMILIES_ROPE_H_
#define QST_WORKER_CHECKPOINT_FAMILIES_ROPE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/config_reader.h"
#include "worker/checkpoint/model_config.h"

namespace qst {

// kUnimplemented: a kind of scaling that is not computed here, named; a rotation of part of the channels.
absl::Status ParseRope(ConfigReader& fields, ModelConfig* config);
absl::Status ValidateRope(const ModelConfig& config, absl::string_view where);
void WriteRope(const ModelConfig& config, nlohmann::json* object);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_FAMILIES_ROPE_H_
