#include "worker/train/training_step.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/status_macros.h"
#include "worker/train/optimizer.h"

namespace qst {
namespace {

double Sum(const std::vector<float>& values) {
  double sum = 0.0;
  for (const float value : values) sum += value;
  return sum;
}

absl::StatusOr<MicroBatch> NextOfKind(MicroBatchQueue* queue, WorkItem::Kind kind) {
  QST_ASSIGN_OR_RETURN(std::optional<MicroBatch> micro_batch, queue->Next());
  QST_CHECK(micro_batch.has_value() && micro_batch->work.kind == kind);
  return *std::move(micro_batch);
}

constexpr char kAdvice[] = "; lower train.learning_rate or side.gate_lr_scale, or set train.clip_norm";

absl::Status NonFiniteLoss(const SideNetwork& network, std::int64_t step) {
  return absl::FailedPreconditionError(absl::StrCat("step ", step,
                                                    ": the loss is not a finite number; the first such value is in ",
                                                    network.DescribeNonFinite(), kAdvice));
}

absl::Status NonFiniteGradient(SideNetwork* network, std::int64_t step) {
  std::string name = "?";
  Parameters& parameters = network->parameters();
  for (const ParameterInfo& info : parameters.layout()) {
    const float* gradient = parameters.gradients() + info.offset;
    bool is_finite = true;
    for (std::int64_t i = 0; i < info.num_elems(); ++i) is_finite = is_finite && std::isfinite(gradient[i]);
    if (!is_finite) {
      name = info.name;
      break;
    }
  }
  return absl::FailedPreconditionError(
      absl::StrCat("step ", step, ": the gradient is not finite, first in ", name, kAdvice));
}

}  // namespace

absl::StatusOr<StepResult> RunTrainingStep(const TrainingContext& context, std::int64_t step,
                                           std::int64_t num_micro_batches, std::int64_t num_targets,
                                           double learning_rate) {
  SideNetwork& network = *context.network;
  StepResult result;
  const absl::Time start = absl::Now();
  const absl::Duration waited_before = context.queue->waiting_time();

  network.parameters().ZeroGradients();
  if (context.probe != nullptr) context.probe->parameters().ZeroGradients();
  const float grad_scale = num_targets > 0 ? 1.0f / static_cast<float>(num_targets) : 0.0f;
  double loss_sum = 0.0;
  Predictions predictions;
  for (std::int64_t i = 0; i < num_micro_batches; ++i) {
    QST_ASSIGN_OR_RETURN(const MicroBatch micro_batch, NextOfKind(context.queue, WorkItem::Kind::kTrain));
    QST_CHECK(micro_batch.work.step == step);
    QST_RETURN_IF_ERROR(
        network.AccumulateGradients(context.ops, micro_batch.batch, context.queue->States(), grad_scale, &predictions));
    const double sum = Sum(predictions.losses);
    if (!std::isfinite(sum)) return NonFiniteLoss(network, step);
    loss_sum += sum;
    result.tokens += micro_batch.num_tokens();
    if (context.probe != nullptr) {
      QST_RETURN_IF_ERROR(context.probe->AccumulateGradients(context.ops, micro_batch.batch, context.queue->States(),
                                                             grad_scale, &predictions));
    }
  }
  result.loss = num_targets > 0 ? loss_sum / static_cast<double>(num_targets) : 0.0;
  result.wait_time = context.queue->waiting_time() - waited_before;
  const absl::Time gradients_done = absl::Now();
  result.side_time = gradients_done - start - result.wait_time;

  QST_ASSIGN_OR_RETURN(result.grad_norm, OptimizerStep(context.ops, *context.settings, network.config().gate_lr_scale,
                                                       learning_rate, step, &network.parameters()));
  if (!std::isfinite(result.grad_norm)) return NonFiniteGradient(&network, step);
  if (context.probe != nullptr) {
    QST_ASSIGN_OR_RETURN(const double probe_norm,
                         OptimizerStep(context.ops, *context.settings, context.probe->config().gate_lr_scale,
                                       learning_rate, step, &context.probe->parameters()));
    if (!std::isfinite(probe_norm)) return NonFiniteGradient(context.probe, step);
  }
  result.optimizer_time = absl::Now() - gradients_done;
  return result;
}

absl::StatusOr<EvalResult> RunEvaluation(const TrainingContext& context, std::int64_t num_micro_batches) {
  const bool is_classification = context.network->config().is_classification();
  EvalResult result;
  double loss_sum = 0.0;
  std::int64_t num_targets = 0;
  std::int64_t num_correct = 0;
  std::int64_t num_probe_correct = 0;
  std::map<std::int32_t, std::int64_t> label_counts;
  Predictions predictions;
  for (std::int64_t i = 0; i < num_micro_batches; ++i) {
    QST_ASSIGN_OR_RETURN(const MicroBatch micro_batch, NextOfKind(context.queue, WorkItem::Kind::kEvaluate));
    QST_RETURN_IF_ERROR(
        context.network->Evaluate(context.ops, micro_batch.batch, context.queue->States(), &predictions));
    loss_sum += Sum(predictions.losses);
    num_targets += static_cast<std::int64_t>(predictions.losses.size());
    for (std::size_t j = 0; j < predictions.predicted.size(); ++j) {
      num_correct += predictions.predicted[j] == micro_batch.batch.targets[j];
      ++label_counts[micro_batch.batch.targets[j]];
    }
    if (is_classification) {
      result.predicted.insert(result.predicted.end(), predictions.predicted.begin(), predictions.predicted.end());
      result.probabilities.insert(result.probabilities.end(), predictions.probabilities.begin(),
                                  predictions.probabilities.end());
    }
    if (context.probe != nullptr) {
      QST_RETURN_IF_ERROR(
          context.probe->Evaluate(context.ops, micro_batch.batch, context.queue->States(), &predictions));
      for (std::size_t j = 0; j < predictions.predicted.size(); ++j) {
        num_probe_correct += predictions.predicted[j] == micro_batch.batch.targets[j];
      }
    }
  }
  const double count = static_cast<double>(num_targets);
  result.metrics["loss"] = num_targets > 0 ? loss_sum / count : 0.0;
  if (is_classification) {
    const auto share = [&](std::int64_t part) { return num_targets > 0 ? static_cast<double>(part) / count : 0.0; };
    std::int64_t most_frequent = 0;
    for (const auto& [label, num] : label_counts) most_frequent = std::max(most_frequent, num);
    result.metrics["accuracy"] = share(num_correct);
    result.metrics["majority_share"] = share(most_frequent);
    if (context.probe != nullptr) result.metrics["probe_accuracy"] = share(num_probe_correct);
  } else {
    result.metrics["perplexity"] = std::exp(result.metrics["loss"]);
  }
  return result;
}

}  // namespace qst
