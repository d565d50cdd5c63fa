// Learning rate by optimizer step.
#ifndef QST_WORKER_TRAIN_SCHEDULE_H_
#define QST_WORKER_TRAIN_SCHEDULE_H_

#include <cstdint>

#include "worker/train/settings.h"

namespace qst {

// Steps count from 1. With w warm-up steps (warmup_ratio of all, rounded up) and n steps in all:
//   step <= w             peak * step / w
//   constant, step > w    peak
//   linear, step > w      peak * (n - step + 1) / (n - p + 1), p = max(w, 1) the step at the peak: on the way to 0,
//                         which the step after the last one would have
class LearningRate {
 public:
  LearningRate(const TrainSettings& settings, std::int64_t total_steps);
  double At(std::int64_t step) const;

 private:
  double peak_;
  bool is_linear_;
  std::int64_t warmup_steps_;
  std::int64_t total_steps_;
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_SCHEDULE_H_
