// Checkpoints of a running training: everything that is needed to go on as if nothing had happened.
//
//   FOLDER/step-N/state.safetensors     param.NAME, exp_avg.NAME, exp_avg_sq.NAME for every tensor, f32; NAME has its
//                                       group's prefix
//   FOLDER/step-N/trainer_state.json    the fields of TrainerState, checksums of both files
//
// A folder appears under its name only when it is complete and on disk. The data position is the step: the order of
// the examples is a pure function of seed and step, and nothing else draws random numbers during training.
#ifndef QST_WORKER_TRAIN_TRAINING_CHECKPOINT_H_
#define QST_WORKER_TRAIN_TRAINING_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/side/parameters.h"

namespace qst {

struct TrainerState {
  std::int64_t step = 0;             // optimizer steps done
  std::uint64_t seed = 0;
  std::string config_fingerprint;    // of all that the result depends on
  std::int64_t tokens = 0;           // trained on
  double elapsed_s = 0.0;
  std::int64_t metrics_bytes = 0;    // of metrics.jsonl at this point
  std::map<std::string, double> last_eval;
  std::optional<double> best_eval;   // of the metric that the task is judged by
  std::int64_t best_eval_step = 0;
};

// What is trained side by side and saved together. Prefixes keep the tensor names apart.
struct CheckpointGroup {
  std::string prefix;
  Parameters* parameters = nullptr;
};
using CheckpointGroups = std::vector<CheckpointGroup>;

// Writes FOLDER/step-N and removes all but the newest `keep` checkpoints.
absl::Status SaveCheckpoint(const std::string& folder, const TrainerState& state, const CheckpointGroups& groups,
                            std::int64_t keep);

// Loads the newest checkpoint that is whole into `groups`; each damaged one that it passes over is renamed to
// FOLDER/damaged-step-N and reported to on_message. Nothing if there is none.
// kFailedPrecondition: the newest whole checkpoint has another fingerprint: the job's settings or data have changed.
absl::StatusOr<std::optional<TrainerState>> LoadNewestCheckpoint(
    const std::string& folder, const std::string& config_fingerprint, const CheckpointGroups& groups,
    const std::function<void(const std::string&)>& on_message);

}  // namespace qst

#endif  // QST_WORKER_TRAIN_TRAINING_CHECKPOINT_H_
