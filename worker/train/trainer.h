// A training job on the side network's worker: from encoded examples and a stream of hidden states to results.
#ifndef QST_WORKER_TRAIN_TRAINER_H_
#define QST_WORKER_TRAIN_TRAINER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "proto/qst/v1/resources.pb.h"
#include "worker/side/side_network.h"
#include "worker/stream/hidden_state_stream.h"
#include "worker/text/batcher.h"
#include "worker/train/example_set.h"
#include "worker/train/metrics_log.h"
#include "worker/train/micro_batch_queue.h"
#include "worker/train/optimizer.h"
#include "worker/train/settings.h"
#include "worker/train/training_checkpoint.h"
#include "worker/train/training_plan.h"
#include "worker/train/training_step.h"

namespace qst {

struct TrainerOptions {
  TrainSettings settings;
  SideNetworkConfig side;
  // Gets checkpoints/ and results/; a checkpoint found there is resumed from.
  std::string job_folder;
};

// Called on the thread of Run, in order; any may be null.
struct TrainerCallbacks {
  std::function<void(const std::string& line)> on_metrics;  // a line of metrics.jsonl, without its end
  std::function<void(const v1::JobProgress& progress)> on_progress;
  enum class State : std::uint8_t { kRunning, kEvaluating };
  std::function<void(State state)> on_state;
  std::function<void(const std::string& message)> on_message;
};

//   Create ─▶ Run ─▶ results/side_network.safetensors, side_config.json, metrics.jsonl, predictions.jsonl
//
// Run may be called once, on any thread. Cancel may be called from any thread at any time; the one who calls it also
// aborts the stream, which wakes Run if it waits.
class Trainer {
 public:
  // Everything is computed in `ops`; `frozen`'s views and the stream's states lie in the memory of its device. What
  // `frozen` and `ops` point to, and `stream`, must outlive the trainer. `eval` may be empty.
  // kInvalidArgument: no training examples, examples that do not fit the model or the task.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(TrainerOptions options, const FrozenHead& frozen,
                                                         ExampleSet train, ExampleSet eval, HiddenStateStream* stream,
                                                         const OpContext& ops, TrainerCallbacks callbacks);

  // OK: results are on disk. kCancelled after Cancel. kFailedPrecondition: the loss is not finite, or a checkpoint
  // belongs to other settings. Errors of the stream and of the disk.
  absl::Status Run();
  void Cancel() { is_cancelled_ = true; }

  const TrainingPlan& plan() const { return *plan_; }
  SideNetwork& network() { return *learner_.network; }
  // Of the newest evaluation, after Run.
  const std::map<std::string, double>& last_eval() const { return state_.last_eval; }

 private:
  // A network and what trains it.
  struct Learner {
    std::unique_ptr<SideNetwork> network;
    std::unique_ptr<Optimizer> optimizer;
  };
  static absl::StatusOr<Learner> MakeLearner(const OpContext& ops, const SideNetworkConfig& config,
                                             const FrozenHead& frozen, const TrainSettings& settings);
  Trainer(TrainerOptions options, Learner learner, Learner probe, ExampleSet train, ExampleSet eval,
          HiddenStateStream* stream, const OpContext& ops, TrainerCallbacks callbacks, Batcher batcher);

  // All that the result depends on besides the code: two runs with equal text do the same.
  std::string Fingerprint() const;
  absl::Status PrepareFolders();
  absl::Status Restore();
  absl::Status TrainFrom(std::int64_t steps_done);
  absl::Status Evaluate(const TrainingContext& context, std::int64_t step);
  absl::Status SaveState(std::int64_t step);
  CheckpointGroups Groups() const;
  absl::Status WritePredictions(const EvalResult& result) const;
  struct Speed {
    double tokens_per_second = 0.0;
    double seconds_per_step = 0.0;  // 0: unknown
  };
  Speed RecentSpeed() const;
  absl::Status LogStep(std::int64_t step, double learning_rate, const StepResult& result);
  void ReportProgress(std::int64_t step);
  void ReportState(TrainerCallbacks::State state);
  void ReportMessage(const std::string& message);
  double ElapsedSeconds() const;

  const TrainerOptions options_;
  const Learner learner_;
  const Learner probe_;  // nulls unless settings.linear_probe
  const ExampleSet train_;
  const ExampleSet eval_;
  HiddenStateStream* const stream_;
  const OpContext ops_;
  const TrainerCallbacks callbacks_;
  Batcher batcher_;
  std::unique_ptr<TrainingPlan> plan_;
  std::vector<std::vector<std::int64_t>> eval_micro_batches_;
  std::atomic<bool> is_cancelled_{false};

  std::unique_ptr<MetricsLog> metrics_;
  TrainerState state_;
  absl::Time run_start_;
  double elapsed_before_s_ = 0.0;
  std::optional<double> last_loss_;
  StepResult since_logged_;  // sums over the steps since the last metrics line
  std::deque<StepResult> recent_steps_;
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_TRAINER_H_
