#include "worker/train/settings.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qst {
namespace {

constexpr std::int64_t kMaxSteps = std::int64_t{1} << 40;

absl::Status OutOfRange(const char* field, double value, const char* range) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, " is not ", range));
}

}  // namespace

absl::StatusOr<TrainSettings> ResolveTrainSettings(const v1::JobSpec& spec) {
  const v1::TrainConfig& train = spec.train();
  const bool is_classification = spec.task().type() == v1::TASK_TYPE_CLASSIFICATION;
  // Regression is trained as classification is.
  const bool has_score_head = is_classification || spec.task().type() == v1::TASK_TYPE_REGRESSION;
  TrainSettings out;
  if (train.epochs() != 0.0) out.epochs = train.epochs();
  if (!(out.epochs > 0.0) || out.epochs > 1e6) return OutOfRange("train.epochs", out.epochs, "in (0, 1e6]");
  if (train.max_steps() > static_cast<std::uint64_t>(kMaxSteps)) {
    return OutOfRange("train.max_steps", static_cast<double>(train.max_steps()), "at most 2^40");
  }
  out.max_steps = static_cast<std::int64_t>(train.max_steps());
  if (train.batch_size() != 0) out.batch_size = train.batch_size();
  if (train.micro_batch_tokens() != 0) out.micro_batch_tokens = train.micro_batch_tokens();
  if (train.backbone_batch_tokens() != 0) out.backbone_batch_tokens = train.backbone_batch_tokens();
  if (train.max_passes_in_flight() != 0) out.max_passes_in_flight = train.max_passes_in_flight();
  if (train.learning_rate() != 0.0) out.learning_rate = train.learning_rate();
  if (!(out.learning_rate > 0.0) || out.learning_rate > 1e3) {
    return OutOfRange("train.learning_rate", out.learning_rate, "in (0, 1000]");
  }
  out.schedule = train.schedule();
  if (out.schedule == v1::SCHEDULE_UNSPECIFIED) {
    out.schedule = has_score_head ? v1::SCHEDULE_LINEAR : v1::SCHEDULE_CONSTANT;
  }
  out.warmup_ratio = train.has_warmup_ratio() ? train.warmup_ratio() : (has_score_head ? 0.06 : 0.03);
  if (!(out.warmup_ratio >= 0.0 && out.warmup_ratio <= 1.0)) {
    return OutOfRange("train.warmup_ratio", out.warmup_ratio, "in [0, 1]");
  }
  if (train.has_weight_decay()) out.weight_decay = train.weight_decay();
  if (!(out.weight_decay >= 0.0 && out.weight_decay <= 1e3)) {
    return OutOfRange("train.weight_decay", out.weight_decay, "in [0, 1000]");
  }
  if (train.has_adam_beta1()) out.adam_beta1 = train.adam_beta1();
  if (!(out.adam_beta1 >= 0.0 && out.adam_beta1 < 1.0)) {
    return OutOfRange("train.adam_beta1", out.adam_beta1, "in [0, 1)");
  }
  if (train.has_adam_beta2()) out.adam_beta2 = train.adam_beta2();
  if (!(out.adam_beta2 >= 0.0 && out.adam_beta2 < 1.0)) {
    return OutOfRange("train.adam_beta2", out.adam_beta2, "in [0, 1)");
  }
  if (train.has_adam_epsilon()) out.adam_epsilon = train.adam_epsilon();
  if (!(out.adam_epsilon > 0.0 && out.adam_epsilon <= 1.0)) {
    return OutOfRange("train.adam_epsilon", out.adam_epsilon, "in (0, 1]");
  }
  if (train.has_clip_norm()) out.clip_norm = train.clip_norm();
  if (!(out.clip_norm >= 0.0) || std::isinf(out.clip_norm)) {
    return OutOfRange("train.clip_norm", out.clip_norm, "a number of at least 0");
  }
  if (train.has_seed()) out.seed = train.seed();
  if (train.has_shuffle()) out.shuffle = train.shuffle();
  if (train.log_every_steps() != 0) out.log_every_steps = train.log_every_steps();
  out.eval_every_steps = static_cast<std::int64_t>(std::min<std::uint64_t>(spec.eval().every_steps(), kMaxSteps));
  out.eval_at_start = spec.eval().has_at_start() ? spec.eval().at_start() : !has_score_head;
  out.linear_probe = spec.eval().linear_probe();
  if (out.linear_probe && !is_classification) {
    return absl::InvalidArgumentError("eval.linear_probe: only classification has one");
  }
  out.checkpoint_every_steps =
      static_cast<std::int64_t>(std::min<std::uint64_t>(spec.checkpoint().every_steps(), kMaxSteps));
  if (spec.checkpoint().keep() != 0) out.checkpoint_keep = spec.checkpoint().keep();
  out.save_initial = spec.checkpoint().save_initial();
  return out;
}

std::string ResultFingerprint(const TrainSettings& s) {
  return absl::StrFormat(
      "epochs=%.17g max_steps=%d batch_size=%d micro_batch_tokens=%d learning_rate=%.17g schedule=%d "
      "warmup_ratio=%.17g weight_decay=%.17g betas=%.17g,%.17g epsilon=%.17g clip_norm=%.17g seed=%u shuffle=%d "
      "linear_probe=%d",
      s.epochs, s.max_steps, s.batch_size, s.micro_batch_tokens, s.learning_rate, static_cast<int>(s.schedule),
      s.warmup_ratio, s.weight_decay, s.adam_beta1, s.adam_beta2, s.adam_epsilon, s.clip_norm, s.seed, s.shuffle,
      s.linear_probe);
}

}  // namespace qst
