// One AdamW step with gradient clipping over all parameter groups.
#ifndef QST_WORKER_TRAIN_OPTIMIZER_H_
#define QST_WORKER_TRAIN_OPTIMIZER_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "worker/side/parameters.h"
#include "worker/train/settings.h"

namespace qst {

// Not thread-safe.
class Optimizer {
 public:
  // In the context that the parameters were made in; they and what it points to must outlive the optimizer. The
  // learning rate of gates and output mix is that of the step times gate_lr_scale; weight decay applies to weights
  // only. kResourceExhausted: no memory.
  static absl::StatusOr<std::unique_ptr<Optimizer>> Create(const OpContext& ctx, const TrainSettings& settings,
                                                           double gate_lr_scale, Parameters* parameters);
  // Waits for enqueued work.
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // Enqueues a step; `step` counts from 1. Gradients above settings.clip_norm (if not 0) are scaled down to it. If
  // their norm is not finite nothing is changed: whoever fetches it says what went wrong.
  absl::Status Step(double learning_rate, std::int64_t step);
  // The norm of the gradients in the newest step, before clipping; waits for the step.
  absl::StatusOr<double> FetchGradientNorm() const;

 private:
  Optimizer(const OpContext& ctx, const TrainSettings& settings, double gate_lr_scale, Parameters* parameters)
      : ctx_(ctx), settings_(settings), gate_lr_scale_(gate_lr_scale), parameters_(parameters) {}

  const OpContext ctx_;
  const TrainSettings settings_;
  const double gate_lr_scale_;
  Parameters* const parameters_;
  DeviceMemory sum_of_squares_;  // one double
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_OPTIMIZER_H_
