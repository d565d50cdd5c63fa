#include "worker/side/predictions.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Softmax, in float64, classes in order.
void AppendProbabilities(const float* logits, std::int64_t num_classes, std::vector<float>* out) {
  const double top = *std::max_element(logits, logits + num_classes);
  double sum = 0.0;
  for (std::int64_t j = 0; j < num_classes; ++j) sum += std::exp(logits[j] - top);
  for (std::int64_t j = 0; j < num_classes; ++j) {
    out->push_back(static_cast<float>(std::exp(logits[j] - top) / sum));
  }
}

}  // namespace

absl::Status PredictionBuffer::Allocate(std::int64_t num_targets, std::int64_t num_scores, bool are_values,
                                        std::int64_t num_reserved, Arena* arena) {
  Clear();
  QST_ASSIGN_OR_RETURN(memory_, arena->Floats(PredictionFloats(std::max(num_targets, num_reserved), num_scores)));
  num_targets_ = num_targets;
  num_scores_ = num_scores;
  are_values_ = are_values;
  return absl::OkStatus();
}

HeadOutputs PredictionBuffer::outputs() const {
  HeadOutputs out;
  float* const losses = memory_ + num_targets_ * num_scores_;
  if (num_scores_ > 0) out.logits = Matrix(memory_, num_targets_, num_scores_);
  out.losses = losses;
  out.predicted = static_cast<std::int32_t*>(static_cast<void*>(losses + num_targets_));
  return out;
}

absl::StatusOr<Predictions> PredictionBuffer::Fetch(const OpContext& ctx) const {
  Predictions out;
  if (num_targets_ == 0) return out;
  std::vector<float> host(static_cast<std::size_t>(PredictionFloats(num_targets_, num_scores_)));
  QST_RETURN_IF_ERROR(Download(ctx, memory_, static_cast<std::int64_t>(host.size() * sizeof(float)), host.data()));
  const float* const losses = host.data() + num_targets_ * num_scores_;
  out.losses.assign(losses, losses + num_targets_);
  out.predicted.resize(static_cast<std::size_t>(num_targets_));
  std::memcpy(out.predicted.data(), losses + num_targets_, out.predicted.size() * sizeof(std::int32_t));
  if (num_scores_ == 0) return out;
  if (are_values_) {
    out.values.assign(host.begin(), host.begin() + num_targets_);
    return out;
  }
  for (std::int64_t i = 0; i < num_targets_; ++i) {
    AppendProbabilities(host.data() + i * num_scores_, num_scores_, &out.probabilities);
  }
  return out;
}

std::int64_t PredictionFloats(std::int64_t num_targets, std::int64_t num_scores) {
  return num_targets * (num_scores + 2);
}

}  // namespace qst
