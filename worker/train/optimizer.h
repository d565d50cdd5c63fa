// One AdamW step with gradient clipping over all parameter groups.
#ifndef QST_WORKER_TRAIN_OPTIMIZER_H_
#define QST_WORKER_TRAIN_OPTIMIZER_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "worker/side/parameters.h"
#include "worker/train/settings.h"

namespace qst {

// step counts from 1. The learning rate of gates and output mix is learning_rate * gate_lr_scale; weight decay
// applies to weights only. Gradients above clip_norm (if not 0) are scaled down to it. Returns their norm before
// that. If the norm is not finite nothing is changed: the caller says what went wrong.
absl::StatusOr<double> OptimizerStep(const OpContext& ctx, const TrainSettings& settings, double gate_lr_scale,
                                     double learning_rate, std::int64_t step, Parameters* parameters);

}  // namespace qst

#endif  // QST_WORKER_TRAIN_OPTIMIZER_H_
