// One optimizer step, and one evaluation: the two things that a training does with micro-batches.
#ifndef QST_WORKER_TRAIN_TRAINING_STEP_H_
#define QST_WORKER_TRAIN_TRAINING_STEP_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device.h"
#include "worker/side/side_network.h"
#include "worker/train/micro_batch_queue.h"
#include "worker/train/optimizer.h"

namespace qst {

// What a step works on; all must outlive the call.
struct TrainingContext {
  OpContext ops;  // that of networks and optimizers
  SideNetwork* network = nullptr;
  Optimizer* optimizer = nullptr;
  // Trained on the same batches with the same settings, as a baseline; null: none.
  SideNetwork* probe = nullptr;
  Optimizer* probe_optimizer = nullptr;
  MicroBatchQueue* queue = nullptr;
};

struct StepResult {
  double loss = 0.0;       // mean over the step's targets
  double grad_norm = 0.0;  // before clipping
  std::int64_t tokens = 0;
  // Of the host, which on CUDA enqueues ahead of the device: hidden states that are still being computed by this very
  // device are waited for there, as part of side_time.
  absl::Duration wait_time;  // for hidden states
  absl::Duration side_time;  // forward and backward
  absl::Duration optimizer_time;
};

// Step `step` (from 1), whose micro-batches, num_micro_batches of them with num_targets targets in all, come next in
// the queue: gradients of all, normalised by num_targets, then clipping and AdamW. Waits for the device once for each
// micro-batch, for the last one when the optimizer's work is enqueued, too.
// kFailedPrecondition: loss or gradient is not finite; names the step and where it began. Errors of the queue.
absl::StatusOr<StepResult> RunTrainingStep(const TrainingContext& context, std::int64_t step,
                                           std::int64_t num_micro_batches, std::int64_t num_targets,
                                           double learning_rate);

struct EvalResult {
  // causal_lm: loss (mean over targets), perplexity. classification: loss, accuracy, majority_share (of the most
  // frequent label in the set: the accuracy of always guessing it), with two classes f1 and matthews (of the second one)
  // and, with a probe, probe_accuracy. regression: loss, which is mse, pearson and spearman.
  std::map<std::string, double> metrics;
  // Classification, in the order of the set.
  std::vector<std::int32_t> predicted;
  std::vector<float> probabilities;  // [examples, classes]
  std::vector<float> values;         // [examples], regression
};
// Over the micro-batches that come next in the queue, num_micro_batches of them: the whole evaluation set.
absl::StatusOr<EvalResult> RunEvaluation(const TrainingContext& context, std::int64_t num_micro_batches);

}  // namespace qst

#endif  // QST_WORKER_TRAIN_TRAINING_STEP_H_
