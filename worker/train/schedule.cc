#include "worker/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace qst {

LearningRate::LearningRate(const TrainSettings& settings, std::int64_t total_steps)
    : peak_(settings.learning_rate),
      is_linear_(settings.schedule == v1::SCHEDULE_LINEAR),
      warmup_steps_(static_cast<std::int64_t>(std::ceil(settings.warmup_ratio * static_cast<double>(total_steps)))),
      total_steps_(total_steps) {}

double LearningRate::At(std::int64_t step) const {
  if (step <= warmup_steps_) return peak_ * static_cast<double>(step) / static_cast<double>(warmup_steps_);
  if (!is_linear_) return peak_;
  const std::int64_t at_peak = std::max<std::int64_t>(warmup_steps_, 1);
  return peak_ * static_cast<double>(total_steps_ - step + 1) / static_cast<double>(total_steps_ - at_peak + 1);
}

}  // namespace qst
