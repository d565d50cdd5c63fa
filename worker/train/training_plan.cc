#include "worker/train/training_plan.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace qst {

TrainingPlan::TrainingPlan(const TrainSettings& settings, std::int64_t steps_per_epoch, bool has_eval_set)
    : settings_(settings), steps_per_epoch_(steps_per_epoch), has_eval_set_(has_eval_set) {
  total_steps_ = settings.max_steps;
  if (total_steps_ == 0) {
    // 2.2 epochs of 5 steps are 11 steps, whatever binary fractions make of 2.2.
    constexpr double kRounding = 1e-6;
    const double steps = std::ceil(settings.epochs * static_cast<double>(steps_per_epoch) - kRounding);
    total_steps_ = std::max<std::int64_t>(1, static_cast<std::int64_t>(steps));
  }
}

double TrainingPlan::EpochAfter(std::int64_t step) const {
  return static_cast<double>(step) / static_cast<double>(steps_per_epoch_);
}

bool TrainingPlan::IsDue(std::int64_t step, std::int64_t every_steps) const {
  if (step == total_steps_) return true;
  return step % (every_steps > 0 ? every_steps : steps_per_epoch_) == 0;
}

bool TrainingPlan::EvaluatesAfter(std::int64_t step) const {
  if (!has_eval_set_) return false;
  return step == 0 ? settings_.eval_at_start : IsDue(step, settings_.eval_every_steps);
}

bool TrainingPlan::SavesAfter(std::int64_t step) const {
  return step == 0 ? settings_.save_initial : IsDue(step, settings_.checkpoint_every_steps);
}

WorkSequence::WorkSequence(const TrainingPlan& plan, Batcher* batcher,
                           std::vector<std::vector<std::int64_t>> eval_micro_batches, std::int64_t steps_done)
    : plan_(plan),
      batcher_(batcher),
      eval_micro_batches_(std::move(eval_micro_batches)),
      step_(steps_done),
      kind_(WorkItem::Kind::kEvaluate) {
  if (steps_done == 0 && plan_.EvaluatesAfter(0)) current_ = eval_micro_batches_;
}

std::optional<WorkItem> WorkSequence::Next() {
  while (next_in_current_ == current_.size()) {
    next_in_current_ = 0;
    if (kind_ == WorkItem::Kind::kTrain && plan_.EvaluatesAfter(step_)) {
      kind_ = WorkItem::Kind::kEvaluate;
      current_ = eval_micro_batches_;
      continue;
    }
    if (step_ == plan_.total_steps()) {
      current_.clear();
      return std::nullopt;
    }
    kind_ = WorkItem::Kind::kTrain;
    current_ = batcher_->GetBatch(step_).micro_batches;
    ++step_;
  }
  WorkItem item;
  item.kind = kind_;
  item.step = step_;
  item.examples = current_[next_in_current_++];
  return item;
}

std::vector<std::vector<std::int64_t>> CutMicroBatches(const std::vector<std::int64_t>& lengths,
                                                       std::int64_t micro_batch_tokens) {
  std::vector<std::vector<std::int64_t>> out;
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (out.empty() || lengths[i] > micro_batch_tokens - tokens) {
      out.emplace_back();
      tokens = 0;
    }
    out.back().push_back(static_cast<std::int64_t>(i));
    tokens += lengths[i];
  }
  return out;
}

}  // namespace qst
