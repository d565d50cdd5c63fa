#include "worker/train/training_step.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"
#include "worker/train/eval_metrics.h"

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

// Adds the losses of the network's newest micro-batch, which it waits for.
absl::Status AddLosses(const SideNetwork& network, std::int64_t step, double* loss_sum) {
  QST_ASSIGN_OR_RETURN(const Predictions predictions, network.FetchPredictions());
  const double sum = Sum(predictions.losses);
  if (!std::isfinite(sum)) {
    return absl::FailedPreconditionError(absl::StrCat("step ", step,
                                                      ": the loss is not a finite number; the first such value is in ",
                                                      network.DescribeNonFinite(), kAdvice));
  }
  *loss_sum += sum;
  return absl::OkStatus();
}

// The norm of the optimizer's newest step, which it waits for.
absl::StatusOr<double> FetchNorm(const Optimizer& optimizer, const Parameters& parameters, std::int64_t step) {
  QST_ASSIGN_OR_RETURN(const double norm, optimizer.FetchGradientNorm());
  if (std::isfinite(norm)) return norm;
  QST_ASSIGN_OR_RETURN(const std::vector<float> gradients, parameters.Download(ParameterBuffer::kGradients));
  std::string name = "?";
  for (const ParameterInfo& info : parameters.layout()) {
    const auto begin = gradients.begin() + info.offset;
    if (!std::all_of(begin, begin + info.num_elems(), [](float value) { return std::isfinite(value); })) {
      name = info.name;
      break;
    }
  }
  return absl::FailedPreconditionError(
      absl::StrCat("step ", step, ": the gradient is not finite, first in ", name, kAdvice));
}

// Of result->predicted; of the probe's predictions, if there are any.
void AddClassificationMetrics(const SideNetworkConfig& config, const std::vector<std::int32_t>& expected,
                              const std::vector<std::int32_t>& of_probe, EvalResult* result) {
  const auto share = [&](std::int64_t part) {
    return expected.empty() ? 0.0 : static_cast<double>(part) / static_cast<double>(expected.size());
  };
  const auto accuracy = [&](const std::vector<std::int32_t>& predicted) {
    std::int64_t num_correct = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) num_correct += predicted[i] == expected[i];
    return share(num_correct);
  };
  std::map<std::int32_t, std::int64_t> label_counts;
  std::int64_t most_frequent = 0;
  for (const std::int32_t label : expected) most_frequent = std::max(most_frequent, ++label_counts[label]);
  result->metrics["accuracy"] = accuracy(result->predicted);
  result->metrics["majority_share"] = share(most_frequent);
  if (!of_probe.empty()) result->metrics["probe_accuracy"] = accuracy(of_probe);
  if (config.num_classes() != 2) return;
  const BinaryScores scores = ScoreBinary(result->predicted, expected);
  result->metrics["f1"] = scores.f1;
  result->metrics["matthews"] = scores.matthews;
}

}  // namespace

absl::StatusOr<StepResult> RunTrainingStep(const TrainingContext& context, std::int64_t step,
                                           std::int64_t num_micro_batches, std::int64_t num_targets,
                                           double learning_rate) {
  SideNetwork& network = *context.network;
  SideNetwork* const probe = context.probe;
  QST_CHECK(num_micro_batches > 0);
  StepResult result;
  const absl::Time start = absl::Now();
  const absl::Duration waited_before = context.queue->waiting_time();

  QST_RETURN_IF_ERROR(network.parameters().ZeroGradients());
  if (probe != nullptr) QST_RETURN_IF_ERROR(probe->parameters().ZeroGradients());
  const float grad_scale = num_targets > 0 ? 1.0f / static_cast<float>(num_targets) : 0.0f;
  double loss_sum = 0.0;
  for (std::int64_t i = 0; i < num_micro_batches; ++i) {
    // The next micro-batch takes the memory of this one, so its losses are looked at first.
    if (i > 0) QST_RETURN_IF_ERROR(AddLosses(network, step, &loss_sum));
    QST_ASSIGN_OR_RETURN(const MicroBatch micro_batch, NextOfKind(context.queue, WorkItem::Kind::kTrain));
    QST_CHECK(micro_batch.work.step == step);
    QST_RETURN_IF_ERROR(network.AccumulateGradients(micro_batch.batch, context.queue->States(), grad_scale));
    if (probe != nullptr) {
      QST_RETURN_IF_ERROR(probe->AccumulateGradients(micro_batch.batch, context.queue->States(), grad_scale));
    }
    result.tokens += micro_batch.num_tokens();
  }
  result.wait_time = context.queue->waiting_time() - waited_before;
  QST_ASSIGN_OR_RETURN(DeviceEvent gradients_done, DeviceEvent::Create(context.ops));
  QST_RETURN_IF_ERROR(gradients_done.Record(context.ops));
  const absl::Time gradients_enqueued = absl::Now();
  QST_RETURN_IF_ERROR(context.optimizer->Step(learning_rate, step));
  if (probe != nullptr) QST_RETURN_IF_ERROR(context.probe_optimizer->Step(learning_rate, step));

  // From here on the host waits for the device. A loss that is not finite has left the parameters as they were: the
  // gradients' norm is not finite either.
  const absl::Time all_enqueued = absl::Now();
  QST_RETURN_IF_ERROR(gradients_done.Wait());
  const absl::Duration waited_for_gradients = absl::Now() - all_enqueued;
  QST_RETURN_IF_ERROR(AddLosses(network, step, &loss_sum));
  QST_ASSIGN_OR_RETURN(result.grad_norm, FetchNorm(*context.optimizer, network.parameters(), step));
  if (probe != nullptr) {
    QST_RETURN_IF_ERROR(FetchNorm(*context.probe_optimizer, probe->parameters(), step).status());
  }
  result.loss = num_targets > 0 ? loss_sum / static_cast<double>(num_targets) : 0.0;
  result.side_time = gradients_enqueued - start - result.wait_time + waited_for_gradients;
  result.optimizer_time = absl::Now() - gradients_enqueued - waited_for_gradients;
  return result;
}

absl::StatusOr<EvalResult> RunEvaluation(const TrainingContext& context, std::int64_t num_micro_batches) {
  const SideNetworkConfig& config = context.network->config();
  EvalResult result;
  double loss_sum = 0.0;
  std::int64_t num_targets = 0;
  std::vector<std::int32_t> expected;  // classes
  std::vector<float> expected_values;  // regression
  std::vector<std::int32_t> of_probe;
  const auto append = [](const auto& from, auto* to) { to->insert(to->end(), from.begin(), from.end()); };
  for (std::int64_t i = 0; i < num_micro_batches; ++i) {
    QST_ASSIGN_OR_RETURN(const MicroBatch micro_batch, NextOfKind(context.queue, WorkItem::Kind::kEvaluate));
    QST_RETURN_IF_ERROR(context.network->Evaluate(micro_batch.batch, context.queue->States()));
    if (context.probe != nullptr) {
      QST_RETURN_IF_ERROR(context.probe->Evaluate(micro_batch.batch, context.queue->States()));
    }
    QST_ASSIGN_OR_RETURN(const Predictions predictions, context.network->FetchPredictions());
    loss_sum += Sum(predictions.losses);
    num_targets += static_cast<std::int64_t>(predictions.losses.size());
    if (config.is_classification()) {
      append(micro_batch.batch.targets, &expected);
      append(predictions.predicted, &result.predicted);
      append(predictions.probabilities, &result.probabilities);
    } else if (config.is_regression()) {
      append(micro_batch.batch.values, &expected_values);
      append(predictions.values, &result.values);
    }
    if (context.probe != nullptr) {
      QST_ASSIGN_OR_RETURN(const Predictions probe_predictions, context.probe->FetchPredictions());
      append(probe_predictions.predicted, &of_probe);
    }
  }
  result.metrics["loss"] = num_targets > 0 ? loss_sum / static_cast<double>(num_targets) : 0.0;
  if (config.is_classification()) {
    AddClassificationMetrics(config, expected, of_probe, &result);
  } else if (config.is_regression()) {
    result.metrics["mse"] = result.metrics["loss"];
    result.metrics["pearson"] = PearsonCorrelation(result.values, expected_values);
    result.metrics["spearman"] = SpearmanCorrelation(result.values, expected_values);
  } else {
    result.metrics["perplexity"] = std::exp(result.metrics["loss"]);
  }
  return result;
}

}  // namespace qst
