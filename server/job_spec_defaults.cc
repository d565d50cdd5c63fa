#include "server/job_spec_defaults.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr double kTunedGateLrScale = 30;
constexpr double kTunedLearningRate = 1e-3;

// Limits that only keep absurd values out; each is far above what the paper or its largest model uses.
constexpr std::uint32_t kMaxReduction = 1024;
constexpr std::uint32_t kMaxRank = 4096;
constexpr std::uint32_t kMaxBatchSize = 1 << 16;
constexpr std::uint32_t kMaxTokens = 1 << 20;
constexpr std::uint32_t kMaxPassesInFlight = 64;
constexpr std::uint32_t kMaxStages = 256;
constexpr std::uint32_t kMinBlockSize = 64;
constexpr std::uint32_t kMaxBlockSize = 4096;
constexpr std::size_t kMaxTemplateTextBytes = 10'000;
constexpr std::uint32_t kDefaultMaxLength = 512;

// Optional fields: set if unset. Plain ones: set if zero.
#define QST_DEFAULT_OPTIONAL(message, field, value)                 \
  do {                                                              \
    if (!(message)->has_##field()) (message)->set_##field((value)); \
  } while (false)
#define QST_DEFAULT_ZERO(message, field, value)                   \
  do {                                                            \
    if ((message)->field() == 0) (message)->set_##field((value)); \
  } while (false)

void FillSide(v1::SideConfig* side) {
  QST_DEFAULT_ZERO(side, preset, v1::SIDE_PRESET_TUNED);
  const bool is_reference = side->preset() == v1::SIDE_PRESET_REFERENCE;
  const bool is_tuned = side->preset() == v1::SIDE_PRESET_TUNED;
  QST_DEFAULT_ZERO(side, reduction, 16);
  QST_DEFAULT_ZERO(side, downsample, v1::DOWNSAMPLE_ADAPTER);
  QST_DEFAULT_ZERO(side, rank, 16);
  QST_DEFAULT_OPTIONAL(side, gate_lr_scale, is_tuned ? kTunedGateLrScale : 1.0);
  QST_DEFAULT_OPTIONAL(side, gate_init, is_reference ? 0.5 : 0.0);
  QST_DEFAULT_OPTIONAL(side, gate_per_channel, is_reference);
  QST_DEFAULT_OPTIONAL(side, mix_init, 1.0);
  QST_DEFAULT_OPTIONAL(side, sigmoid_mix, is_reference);
  QST_DEFAULT_OPTIONAL(side, downsample_norm, is_reference || is_tuned);
  QST_DEFAULT_OPTIONAL(side, share_first_downsample, is_reference);
  QST_DEFAULT_OPTIONAL(side, upsample_bias, true);
}

void FillTrain(bool has_score_head, bool is_tuned, v1::TrainConfig* train) {
  QST_DEFAULT_ZERO(train, epochs, 3);
  QST_DEFAULT_ZERO(train, batch_size, 16);
  QST_DEFAULT_ZERO(train, micro_batch_tokens, 2048);
  QST_DEFAULT_ZERO(train, backbone_batch_tokens, 4096);
  QST_DEFAULT_ZERO(train, max_passes_in_flight, 2);
  QST_DEFAULT_ZERO(train, learning_rate, is_tuned ? kTunedLearningRate : 2e-4);
  QST_DEFAULT_ZERO(train, schedule, has_score_head ? v1::SCHEDULE_LINEAR : v1::SCHEDULE_CONSTANT);
  QST_DEFAULT_OPTIONAL(train, warmup_ratio, has_score_head ? 0.06 : 0.03);
  QST_DEFAULT_OPTIONAL(train, weight_decay, 0.0);
  QST_DEFAULT_OPTIONAL(train, adam_beta1, 0.9);
  QST_DEFAULT_OPTIONAL(train, adam_beta2, 0.999);
  QST_DEFAULT_OPTIONAL(train, adam_epsilon, 1e-8);
  QST_DEFAULT_OPTIONAL(train, clip_norm, 1.0);
  QST_DEFAULT_OPTIONAL(train, seed, 42);
  QST_DEFAULT_OPTIONAL(train, shuffle, true);
  QST_DEFAULT_ZERO(train, wire_dtype, v1::WIRE_DTYPE_BF16);
  QST_DEFAULT_OPTIONAL(train, tf32, true);
  QST_DEFAULT_ZERO(train, log_every_steps, 1);
}

// Gathers violations under their paths.
class Violations {
 public:
  void Add(absl::string_view path, absl::string_view what) { all_.push_back(absl::StrCat(path, ": ", what)); }

  void RequireRange(absl::string_view path, std::uint64_t value, std::uint64_t low, std::uint64_t high) {
    if (value < low) Add(path, absl::StrCat("must be at least ", low, ", is ", value));
    if (value > high) Add(path, absl::StrCat("must be at most ", high, ", is ", value));
  }
  // low < value (or <= with `closed`), value < high.
  void RequireNumber(absl::string_view path, double value, double low, bool closed, double high) {
    const bool above = closed ? value >= low : value > low;
    if (std::isfinite(value) && above && value < high) return;
    std::string what = absl::StrCat("must be ", closed ? "at least " : "above ", low);
    if (std::isfinite(high)) absl::StrAppend(&what, " and below ", high);
    Add(path, absl::StrCat(what, ", is ", value));
  }
  template <typename Enum>
  void RequireKnown(absl::string_view path, Enum value, bool (*is_valid)(int)) {
    if (value == 0 || !is_valid(value)) Add(path, absl::StrCat("value ", static_cast<int>(value), " is unknown"));
  }
  void AddStatus(const absl::Status& status) {
    if (!status.ok()) all_.emplace_back(status.message());
  }

  absl::Status ToStatus() const {
    if (all_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(all_, "; "));
  }

 private:
  std::vector<std::string> all_;
};

bool IsPowerOfTwo(std::uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

void CheckBlockSize(std::uint32_t block_size, Violations* violations) {
  if (block_size < kMinBlockSize || block_size > kMaxBlockSize || !IsPowerOfTwo(block_size)) {
    violations->Add("quantization.block_size", absl::StrCat("must be a power of two from 64 to 4096, is ", block_size));
  }
}

void CheckSide(const v1::SideConfig& side, Violations* violations) {
  violations->RequireKnown("side.preset", side.preset(), v1::SidePreset_IsValid);
  violations->RequireKnown("side.downsample", side.downsample(), v1::Downsample_IsValid);
  violations->RequireRange("side.reduction", side.reduction(), 1, kMaxReduction);
  violations->RequireRange("side.rank", side.rank(), 1, kMaxRank);
  violations->RequireNumber("side.gate_lr_scale", side.gate_lr_scale(), 0, true, INFINITY);
  violations->RequireNumber("side.gate_init", side.gate_init(), -100, true, 100);
  violations->RequireNumber("side.mix_init", side.mix_init(), -100, true, 100);
}

void CheckTask(const v1::TaskConfig& task, Violations* violations) {
  violations->RequireKnown("task.type", task.type(), v1::TaskType_IsValid);
  if (task.type() != v1::TASK_TYPE_CLASSIFICATION && task.labels_size() > 0) {
    violations->Add("task.labels", absl::StrCat("only for classification, task.type is ",
                                                task.type() == v1::TASK_TYPE_REGRESSION ? "regression" : "causal_lm"));
  }
  if (task.labels_size() == 1) violations->Add("task.labels", "must name at least 2 labels, names 1");
  std::set<std::string> seen;
  for (int i = 0; i < task.labels_size(); ++i) {
    const std::string path = absl::StrCat("task.labels[", i, "]");
    if (task.labels(i).empty()) violations->Add(path, "must not be empty");
    if (!seen.insert(task.labels(i)).second) violations->Add(path, absl::StrCat("'", task.labels(i), "' comes twice"));
  }
}

void CheckCustomTemplate(const v1::CustomTemplate& custom, Violations* violations) {
  const std::pair<absl::string_view, const std::string*> texts[] = {
      {"system_prefix", &custom.system_prefix()},       {"system_suffix", &custom.system_suffix()},
      {"user_prefix", &custom.user_prefix()},           {"user_suffix", &custom.user_suffix()},
      {"assistant_prefix", &custom.assistant_prefix()}, {"assistant_suffix", &custom.assistant_suffix()},
      {"default_system", &custom.default_system()}};
  for (const auto& [field, text] : texts) {
    if (text->size() <= kMaxTemplateTextBytes) continue;
    violations->Add(absl::StrCat("data.custom_template.", field),
                    absl::StrCat("must be at most ", kMaxTemplateTextBytes, " bytes, is ", text->size()));
  }
}

// What describing a data set needs as well.
void CheckDataForm(const v1::DataConfig& data, Violations* violations) {
  violations->RequireKnown("data.format", data.format(), v1::DataFormat_IsValid);
  static constexpr absl::string_view kTemplates[] = {"auto",   "alpaca",  "chatml", "llama2", "llama3", "mistral",
                                                     "vicuna", "guanaco", "zephyr", "plain",  "custom"};
  const std::string& name = data.template_();
  if (std::find(std::begin(kTemplates), std::end(kTemplates), name) == std::end(kTemplates)) {
    violations->Add("data.template", absl::StrCat("must be one of ", absl::StrJoin(kTemplates, ", "), ", is '",
                                                  name.substr(0, 80), "'"));
  } else if (name == "custom" && !data.has_custom_template()) {
    violations->Add("data.custom_template", "is required, since data.template is custom");
  } else if (data.has_custom_template() && name != "custom" && name != "auto") {
    violations->Add("data.custom_template", absl::StrCat("must not be given, since data.template is ", name));
  }
  CheckCustomTemplate(data.custom_template(), violations);
  violations->RequireRange("data.max_length", data.max_length(), 1, kMaxTokens);
}

void FillData(v1::DataConfig* data) {
  QST_DEFAULT_ZERO(data, format, v1::DATA_FORMAT_AUTO);
  if (data->template_().empty()) data->set_template_("auto");
  QST_DEFAULT_ZERO(data, max_length, kDefaultMaxLength);
}

void CheckData(const v1::DataConfig& data, Violations* violations) {
  if (data.train().empty()) violations->Add("data.train", "is required: a data set's name or id");
  CheckDataForm(data, violations);
}

void CheckTrain(const v1::TrainConfig& train, const v1::DataConfig& data, Violations* violations) {
  if (train.max_steps() == 0) violations->RequireNumber("train.epochs", train.epochs(), 0, false, 1e6);
  violations->RequireRange("train.batch_size", train.batch_size(), 1, kMaxBatchSize);
  violations->RequireRange("train.micro_batch_tokens", train.micro_batch_tokens(), 1, kMaxTokens);
  violations->RequireRange("train.backbone_batch_tokens", train.backbone_batch_tokens(), 1, kMaxTokens);
  if (train.micro_batch_tokens() < data.max_length()) {
    violations->Add("train.micro_batch_tokens",
                    absl::StrCat("must be at least data.max_length (", data.max_length(),
                                 "), so that one example fits, is ", train.micro_batch_tokens()));
  }
  if (train.backbone_batch_tokens() < train.micro_batch_tokens()) {
    violations->Add("train.backbone_batch_tokens",
                    absl::StrCat("must be at least train.micro_batch_tokens (", train.micro_batch_tokens(), "), is ",
                                 train.backbone_batch_tokens()));
  }
  violations->RequireRange("train.max_passes_in_flight", train.max_passes_in_flight(), 1, kMaxPassesInFlight);
  violations->RequireNumber("train.learning_rate", train.learning_rate(), 0, false, INFINITY);
  violations->RequireKnown("train.schedule", train.schedule(), v1::Schedule_IsValid);
  violations->RequireNumber("train.warmup_ratio", train.warmup_ratio(), 0, true, 1);
  violations->RequireNumber("train.weight_decay", train.weight_decay(), 0, true, INFINITY);
  violations->RequireNumber("train.adam_beta1", train.adam_beta1(), 0, true, 1);
  violations->RequireNumber("train.adam_beta2", train.adam_beta2(), 0, true, 1);
  violations->RequireNumber("train.adam_epsilon", train.adam_epsilon(), 0, false, INFINITY);
  violations->RequireNumber("train.clip_norm", train.clip_norm(), 0, true, INFINITY);
  violations->RequireKnown("train.wire_dtype", train.wire_dtype(), v1::WireDtype_IsValid);
  violations->RequireKnown("train.dtype", train.dtype(), v1::ComputeDtype_IsValid);
}

absl::string_view QuantizationName(v1::QuantizationType type) {
  switch (type) {
    case v1::QUANTIZATION_TYPE_NF4:
      return "nf4";
    case v1::QUANTIZATION_TYPE_FP4:
      return "fp4";
    case v1::QUANTIZATION_TYPE_NONE:
      return "none";
    default:
      return "unknown";
  }
}

}  // namespace

void FillJobSpecDefaults(v1::JobSpec* spec) {
  if (spec->name().empty()) spec->set_name("job");
  FillSide(spec->mutable_side());
  QST_DEFAULT_ZERO(spec->mutable_task(), type, v1::TASK_TYPE_CAUSAL_LM);
  // Regression is trained as classification is.
  const bool has_score_head =
      spec->task().type() == v1::TASK_TYPE_CLASSIFICATION || spec->task().type() == v1::TASK_TYPE_REGRESSION;
  FillData(spec->mutable_data());
  FillTrain(has_score_head, spec->side().preset() == v1::SIDE_PRESET_TUNED, spec->mutable_train());
  QST_DEFAULT_OPTIONAL(spec->mutable_eval(), at_start, !has_score_head);
  QST_DEFAULT_ZERO(spec->mutable_checkpoint(), keep, 2);
  QST_DEFAULT_ZERO(spec->mutable_resources(), device, v1::DEVICE_KIND_AUTO);
  QST_DEFAULT_ZERO(spec->mutable_train(), dtype, v1::COMPUTE_DTYPE_BF16);
}

absl::Status ValidateJobSpec(const v1::JobSpec& spec) {
  Violations violations;
  violations.AddStatus(ValidateName(spec.name(), "name"));
  if (spec.model().empty()) violations.Add("model", "is required: a name from `qst model list`");
  CheckSide(spec.side(), &violations);
  CheckTask(spec.task(), &violations);
  if (spec.eval().linear_probe() && spec.task().type() != v1::TASK_TYPE_CLASSIFICATION) {
    violations.Add("eval.linear_probe", "only classification has one");
  }
  CheckData(spec.data(), &violations);
  CheckTrain(spec.train(), spec.data(), &violations);
  violations.AddStatus(ValidateResources(spec.resources(), "resources"));
  return violations.ToStatus();
}

absl::Status FillDataDefaults(v1::DataConfig* data) {
  FillData(data);
  Violations violations;
  CheckDataForm(*data, &violations);
  return violations.ToStatus();
}

absl::Status ValidateResources(const v1::ResourceConfig& resources, absl::string_view path) {
  Violations violations;
  violations.RequireRange(absl::StrCat(path, ".stages"), resources.stages(), 0, kMaxStages);
  violations.RequireRange(absl::StrCat(path, ".workers"), resources.workers(), 0, kMaxStages + 1);
  // 0, of a request that says nothing, means auto.
  if (!v1::DeviceKind_IsValid(resources.device())) {
    violations.Add(absl::StrCat(path, ".device"),
                   absl::StrCat("value ", static_cast<int>(resources.device()), " is unknown"));
  }
  if (resources.stages() > 0 && resources.workers() > resources.stages() + 1) {
    violations.Add(absl::StrCat(path, ".workers"), absl::StrCat("must be at most ", path, ".stages + 1 (",
                                                                resources.stages() + 1, "), is ", resources.workers()));
  }
  return violations.ToStatus();
}

absl::Status MatchModel(const v1::Model& model, v1::JobSpec* spec) {
  Violations violations;
  v1::Quantization* wanted = spec->mutable_quantization();
  const v1::Quantization& stored = model.quantization();
  const std::string hint = absl::StrCat(" (model '", model.name(), "' is stored so; import it again to change that)");
  if (wanted->type() != 0 && wanted->type() != stored.type()) {
    violations.Add("quantization.type", absl::StrCat("must be ", QuantizationName(stored.type()), ", is ",
                                                     QuantizationName(wanted->type()), hint));
  }
  // Without quantization, blocks and their scales mean nothing.
  if (stored.type() != v1::QUANTIZATION_TYPE_NONE) {
    if (wanted->block_size() != 0 && wanted->block_size() != stored.block_size()) {
      violations.Add("quantization.block_size",
                     absl::StrCat("must be ", stored.block_size(), ", is ", wanted->block_size(), hint));
    }
    if (wanted->has_double_quant() && wanted->double_quant() != stored.double_quant()) {
      violations.Add("quantization.double_quant",
                     absl::StrCat("must be ", stored.double_quant() ? "true" : "false", ", is ",
                                  wanted->double_quant() ? "true" : "false", hint));
    }
  }
  if (model.num_layers() > 0 && spec->resources().stages() > model.num_layers()) {
    violations.Add("resources.stages", absl::StrCat("must be at most the model's ", model.num_layers(), " layers, is ",
                                                    spec->resources().stages()));
  }
  QST_RETURN_IF_ERROR(violations.ToStatus());
  *wanted = stored;
  return absl::OkStatus();
}

absl::Status ResolveQuantization(v1::Quantization* quantization) {
  QST_DEFAULT_ZERO(quantization, type, v1::QUANTIZATION_TYPE_NF4);
  QST_DEFAULT_ZERO(quantization, block_size, 64);
  QST_DEFAULT_OPTIONAL(quantization, double_quant, true);
  Violations violations;
  violations.RequireKnown("quantization.type", quantization->type(), v1::QuantizationType_IsValid);
  CheckBlockSize(quantization->block_size(), &violations);
  return violations.ToStatus();
}

absl::Status ValidateName(absl::string_view name, absl::string_view field) {
  bool is_valid = !name.empty() && name.size() <= 64 && name != "." && name != "..";
  for (const char c : name) is_valid = is_valid && (absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-');
  if (is_valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": must be 1 to 64 of A-Z a-z 0-9 . _ -, is '", name.substr(0, 80), "'"));
}

}  // namespace qst
