// What a training job does, in order: steps, evaluations and checkpoints, as a pure function of its settings. Both
// the loop that does the work and the look-ahead that asks the stages for hidden states follow it.
#ifndef QST_WORKER_TRAIN_TRAINING_PLAN_H_
#define QST_WORKER_TRAIN_TRAINING_PLAN_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "worker/text/batcher.h"
#include "worker/train/settings.h"

namespace qst {

class TrainingPlan {
 public:
  TrainingPlan(const TrainSettings& settings, std::int64_t steps_per_epoch, bool has_eval_set);

  std::int64_t total_steps() const { return total_steps_; }
  // Epochs done after `step` steps, fractional.
  double EpochAfter(std::int64_t step) const;
  // After `step` steps (0: before the first).
  bool EvaluatesAfter(std::int64_t step) const;
  bool SavesAfter(std::int64_t step) const;

 private:
  bool IsDue(std::int64_t step, std::int64_t every_steps) const;

  TrainSettings settings_;
  std::int64_t steps_per_epoch_;
  bool has_eval_set_;
  std::int64_t total_steps_;
};

// One micro-batch of the plan.
struct WorkItem {
  enum class Kind : std::uint8_t { kTrain, kEvaluate };
  Kind kind = Kind::kTrain;
  // kTrain: the step that it is part of, from 1. kEvaluate: the steps done before.
  std::int64_t step = 0;
  // Indices into the training or the evaluation set.
  std::vector<std::int64_t> examples;
};

// All micro-batches in order, beginning after `steps_done` steps. Evaluations that follow that very step count as
// done, except before the first step.
class WorkSequence {
 public:
  // `plan` and `batcher` must outlive the sequence. eval_micro_batches: those of one evaluation.
  WorkSequence(const TrainingPlan& plan, Batcher* batcher, std::vector<std::vector<std::int64_t>> eval_micro_batches,
               std::int64_t steps_done);

  // Nothing at the end.
  std::optional<WorkItem> Next();

 private:
  const TrainingPlan& plan_;
  Batcher* batcher_;
  std::vector<std::vector<std::int64_t>> eval_micro_batches_;
  std::int64_t step_;                 // the one whose items are being handed out, or 0
  WorkItem::Kind kind_;
  std::vector<std::vector<std::int64_t>> current_;
  std::size_t next_in_current_ = 0;
};

// Consecutive examples cut where the next one would no longer fit.
std::vector<std::vector<std::int64_t>> CutMicroBatches(const std::vector<std::int64_t>& lengths,
                                                       std::int64_t micro_batch_tokens);

}  // namespace qst

#endif  // QST_WORKER_TRAIN_TRAINING_PLAN_H_
