// How to train, as plain values: a JobSpec's train, eval and checkpoint parts with every default filled in.
#ifndef QST_WORKER_TRAIN_SETTINGS_H_
#define QST_WORKER_TRAIN_SETTINGS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "proto/qst/v1/job_spec.pb.h"

namespace qst {

// Fields mean what those of the same name in job_spec.proto mean.
struct TrainSettings {
  double epochs = 3.0;
  std::int64_t max_steps = 0;
  std::int64_t batch_size = 16;
  std::int64_t micro_batch_tokens = 2048;
  std::int64_t backbone_batch_tokens = 4096;
  std::int64_t max_passes_in_flight = 2;
  double learning_rate = 2e-4;
  v1::Schedule schedule = v1::SCHEDULE_CONSTANT;
  double warmup_ratio = 0.03;
  double weight_decay = 0.0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double clip_norm = 1.0;
  std::uint64_t seed = 42;
  bool shuffle = true;
  std::int64_t log_every_steps = 1;

  std::int64_t eval_every_steps = 0;
  bool eval_at_start = true;
  bool linear_probe = false;

  std::int64_t checkpoint_every_steps = 0;
  std::int64_t checkpoint_keep = 2;
  bool save_initial = false;
};

// kInvalidArgument: a value out of range; the message names the field.
absl::StatusOr<TrainSettings> ResolveTrainSettings(const v1::JobSpec& spec);

// The settings that the resulting parameters depend on, as text: equal text, equal result.
std::string ResultFingerprint(const TrainSettings& settings);

}  // namespace qst

#endif  // QST_WORKER_TRAIN_SETTINGS_H_
