#include "worker/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cuda/device.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/train/results.h"
#include "worker/train/schedule.h"

namespace qst {
namespace {

// The speed that is shown is that of so many newest steps together. Hidden states come in passes of several steps, so
// one step waits for all of them and the next ones do not wait: a single step's speed says nothing.
constexpr std::size_t kSpeedSteps = 50;

std::int64_t CountTargets(const ExampleSet& set, const Batch& batch) {
  std::int64_t num = 0;
  for (const auto& micro_batch : batch.micro_batches) {
    for (const std::int64_t example : micro_batch) num += set.NumTargets(example);
  }
  return num;
}

// The most of a GPU's memory that was in use by now; on CPU, what the process has now.
std::int64_t MemoryBytes(const OpContext& ops) {
  return ops.device == DeviceType::kCuda ? cuda::DeviceOf(*ops.stream).peak_bytes() : ResidentBytes();
}

}  // namespace

Trainer::Trainer(TrainerOptions options, Learner learner, Learner probe, ExampleSet train, ExampleSet eval,
                 HiddenStateStream* stream, const OpContext& ops, TrainerCallbacks callbacks, Batcher batcher)
    : options_(std::move(options)),
      learner_(std::move(learner)),
      probe_(std::move(probe)),
      train_(std::move(train)),
      eval_(std::move(eval)),
      stream_(stream),
      ops_(ops),
      callbacks_(std::move(callbacks)),
      batcher_(std::move(batcher)) {
  plan_ = std::make_unique<TrainingPlan>(options_.settings, batcher_.steps_per_epoch(), eval_.size() > 0);
  eval_micro_batches_ = CutMicroBatches(eval_.Lengths(), options_.settings.micro_batch_tokens);
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(TrainerOptions options, const FrozenHead& frozen,
                                                         ExampleSet train, ExampleSet eval, HiddenStateStream* stream,
                                                         const OpContext& ops, TrainerCallbacks callbacks) {
  QST_RETURN_IF_ERROR(train.Check(options.side, "training"));
  QST_RETURN_IF_ERROR(eval.Check(options.side, "evaluation"));
  const BackboneDims& dims = options.side.backbone;
  if (stream->num_layers() != dims.num_layers || stream->hidden_size() != dims.hidden_size) {
    return absl::InvalidArgumentError(absl::StrCat("trainer: the stream has ", stream->num_layers(), " layers of ",
                                                   stream->hidden_size(), ", the model ", dims.num_layers, " of ",
                                                   dims.hidden_size));
  }
  BatcherOptions batching;
  batching.seed = options.settings.seed;
  batching.batch_size = options.settings.batch_size;
  batching.micro_batch_tokens = options.settings.micro_batch_tokens;
  batching.shuffle = options.settings.shuffle;
  QST_ASSIGN_OR_RETURN(Batcher batcher, Batcher::Create(batching, train.Lengths()));
  QST_ASSIGN_OR_RETURN(Learner learner, MakeLearner(ops, options.side, frozen, options.settings));
  Learner probe;
  if (options.settings.linear_probe) {
    QST_ASSIGN_OR_RETURN(probe, MakeLearner(ops, ProbeOf(options.side), frozen, options.settings));
  }
  return absl::WrapUnique(new Trainer(std::move(options), std::move(learner), std::move(probe), std::move(train),
                                      std::move(eval), stream, ops, std::move(callbacks), std::move(batcher)));
}

absl::StatusOr<Trainer::Learner> Trainer::MakeLearner(const OpContext& ops, const SideNetworkConfig& config,
                                                      const FrozenHead& frozen, const TrainSettings& settings) {
  Learner learner;
  QST_ASSIGN_OR_RETURN(learner.network, SideNetwork::Create(ops, config, frozen, settings.seed));
  learner.network->UseGraphs(settings.micro_batch_tokens);
  QST_ASSIGN_OR_RETURN(learner.optimizer,
                       Optimizer::Create(ops, settings, config.gate_lr_scale, &learner.network->parameters()));
  return learner;
}

absl::Status Trainer::Run() {
  run_start_ = absl::Now();
  QST_RETURN_IF_ERROR(PrepareFolders());
  QST_RETURN_IF_ERROR(Restore());
  QST_RETURN_IF_ERROR(TrainFrom(state_.step));
  QST_RETURN_IF_ERROR(metrics_->Sync());
  return SaveSideNetwork(options_.job_folder + "/results", *learner_.network);
}

absl::Status Trainer::TrainFrom(std::int64_t steps_done) {
  const TrainSettings& settings = options_.settings;
  WorkSequence work(*plan_, &batcher_, eval_micro_batches_, steps_done);
  MicroBatchQueue queue({settings.backbone_batch_tokens, settings.max_passes_in_flight, options_.side.first_layer()},
                        &train_, &eval_, &work, stream_, &is_cancelled_);
  const TrainingContext context{
      ops_, learner_.network.get(), learner_.optimizer.get(), probe_.network.get(), probe_.optimizer.get(), &queue};
  const LearningRate learning_rate(settings, plan_->total_steps());
  // The look-ahead asks the batcher for later steps: a copy of its own keeps each from disturbing the other's epoch.
  Batcher batcher = batcher_;

  if (steps_done == 0) {
    // In this order: a run that resumes from here evaluates again, after what this one has logged of it was cut off.
    if (plan_->SavesAfter(0)) QST_RETURN_IF_ERROR(SaveState(0));
    if (plan_->EvaluatesAfter(0)) QST_RETURN_IF_ERROR(Evaluate(context, 0));
  }
  ReportState(TrainerCallbacks::State::kRunning);
  ReportProgress(steps_done);
  for (std::int64_t step = steps_done + 1; step <= plan_->total_steps(); ++step) {
    const Batch batch = batcher.GetBatch(step - 1);
    const double lr = learning_rate.At(step);
    QST_ASSIGN_OR_RETURN(const StepResult result,
                         RunTrainingStep(context, step, static_cast<std::int64_t>(batch.micro_batches.size()),
                                         CountTargets(train_, batch), lr));
    QST_RETURN_IF_ERROR(LogStep(step, lr, result));
    if (plan_->EvaluatesAfter(step)) {
      QST_RETURN_IF_ERROR(Evaluate(context, step));
      if (step < plan_->total_steps()) ReportState(TrainerCallbacks::State::kRunning);
    }
    if (plan_->SavesAfter(step)) QST_RETURN_IF_ERROR(SaveState(step));
    ReportProgress(step);
  }
  // Lets the queue release the last pass.
  return queue.Next().status();
}

absl::Status Trainer::Evaluate(const TrainingContext& context, std::int64_t step) {
  ReportState(TrainerCallbacks::State::kEvaluating);
  QST_ASSIGN_OR_RETURN(const EvalResult result,
                       RunEvaluation(context, static_cast<std::int64_t>(eval_micro_batches_.size())));
  const std::string line = EvalJsonLine(step, plan_->EpochAfter(step), result.metrics);
  QST_RETURN_IF_ERROR(metrics_->Append(line));
  if (callbacks_.on_metrics) callbacks_.on_metrics(line);

  state_.last_eval.clear();
  for (const auto& [name, value] : result.metrics) {
    if (std::isfinite(value)) state_.last_eval[name] = value;
  }
  const bool is_classification = options_.side.is_classification();
  const double value = result.metrics.at(is_classification ? "accuracy" : "loss");
  const bool is_best = !state_.best_eval || (is_classification ? value > *state_.best_eval : value < *state_.best_eval);
  if (std::isfinite(value) && is_best) {
    state_.best_eval = value;
    state_.best_eval_step = step;
  }
  return options_.side.has_score_head() ? WritePredictions(result) : absl::OkStatus();
}

absl::Status Trainer::WritePredictions(const EvalResult& result) const {
  const std::vector<std::string>& labels = options_.side.labels;
  std::string out;
  for (std::int64_t i = 0; i < eval_.size(); ++i) {
    nlohmann::ordered_json json;
    json["line"] = eval_[i].line;
    if (eval_.text(i) != nullptr) json["text"] = *eval_.text(i);
    if (options_.side.is_regression()) {
      json["label"] = eval_[i].value;
      json["prediction"] = result.values[i];
    } else {
      json["label"] = labels[eval_[i].label];
      json["prediction"] = labels[result.predicted[i]];
    }
    for (std::size_t c = 0; c < labels.size(); ++c) {
      json["probabilities"][labels[c]] = result.probabilities[i * labels.size() + c];
    }
    absl::StrAppend(&out, json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace), "\n");
  }
  return WriteFileAtomically(absl::StrCat(options_.job_folder, "/results/", kPredictionsFile), out);
}

absl::Status Trainer::LogStep(std::int64_t step, double learning_rate, const StepResult& result) {
  state_.step = step;
  state_.tokens += result.tokens;
  last_loss_ = result.loss;
  since_logged_.tokens += result.tokens;
  since_logged_.wait_time += result.wait_time;
  since_logged_.side_time += result.side_time;
  since_logged_.optimizer_time += result.optimizer_time;
  recent_steps_.push_back(result);
  if (recent_steps_.size() > kSpeedSteps) recent_steps_.pop_front();
  if (step % options_.settings.log_every_steps != 0 && step != plan_->total_steps()) return absl::OkStatus();

  TrainMetrics metrics;
  metrics.step = step;
  metrics.epoch = plan_->EpochAfter(step);
  metrics.loss = result.loss;
  metrics.lr = learning_rate;
  metrics.grad_norm = result.grad_norm;
  metrics.tokens = state_.tokens;
  metrics.elapsed_s = ElapsedSeconds();
  metrics.device_memory_bytes = MemoryBytes(ops_);
  metrics.wait_s = absl::ToDoubleSeconds(since_logged_.wait_time);
  metrics.side_s = absl::ToDoubleSeconds(since_logged_.side_time);
  metrics.optimizer_s = absl::ToDoubleSeconds(since_logged_.optimizer_time);
  metrics.tokens_per_second = RecentSpeed().tokens_per_second;
  since_logged_ = StepResult();
  const std::string line = ToJsonLine(metrics);
  QST_RETURN_IF_ERROR(metrics_->Append(line));
  if (callbacks_.on_metrics) callbacks_.on_metrics(line);
  return absl::OkStatus();
}

absl::Status Trainer::SaveState(std::int64_t step) {
  QST_RETURN_IF_ERROR(metrics_->Sync());
  state_.step = step;
  state_.elapsed_s = ElapsedSeconds();
  state_.metrics_bytes = metrics_->size_bytes();
  return SaveCheckpoint(options_.job_folder + "/checkpoints", state_, Groups(), options_.settings.checkpoint_keep);
}

CheckpointGroups Trainer::Groups() const {
  CheckpointGroups groups = {{"", &learner_.network->parameters()}};
  if (probe_.network != nullptr) groups.push_back({"probe.", &probe_.network->parameters()});
  return groups;
}

absl::Status Trainer::PrepareFolders() {
  for (const char* name : {"/results", "/checkpoints"}) {
    std::error_code error;
    std::filesystem::create_directories(options_.job_folder + name, error);
    if (error) return ErrnoStatus("cannot create", options_.job_folder + name, error.value());
  }
  return absl::OkStatus();
}

absl::Status Trainer::Restore() {
  const std::string fingerprint = Fingerprint();
  QST_ASSIGN_OR_RETURN(std::optional<TrainerState> state,
                       LoadNewestCheckpoint(options_.job_folder + "/checkpoints", fingerprint, Groups(),
                                            [this](const std::string& message) { ReportMessage(message); }));
  if (state) {
    state_ = *std::move(state);
    elapsed_before_s_ = state_.elapsed_s;
    ReportMessage(absl::StrCat("resuming after step ", state_.step, " of ", plan_->total_steps()));
  } else {
    for (const CheckpointGroup& group : Groups()) {
      QST_RETURN_IF_ERROR(group.parameters->Initialise(options_.settings.seed));
    }
    state_ = TrainerState();
    state_.seed = options_.settings.seed;
    state_.config_fingerprint = fingerprint;
  }
  const std::string path = absl::StrCat(options_.job_folder, "/results/", kMetricsFile);
  absl::StatusOr<std::unique_ptr<MetricsLog>> metrics = MetricsLog::Open(path, state_.metrics_bytes);
  if (absl::IsDataLoss(metrics.status())) {
    // The training itself is whole; only lines about its past are gone.
    ReportMessage(absl::StrCat(metrics.status().message(), "; earlier metrics are lost"));
    metrics = MetricsLog::Open(path, 0);
  }
  if (!metrics.ok()) return metrics.status();
  metrics_ = *std::move(metrics);
  return absl::OkStatus();
}

std::string Trainer::Fingerprint() const {
  const std::string text =
      absl::StrCat(SideConfigToJson(options_.side), ResultFingerprint(options_.settings), " ", train_.Fingerprint());
  Sha256 sha;
  sha.Update(text.data(), text.size());
  return sha.HexDigest();
}

Trainer::Speed Trainer::RecentSpeed() const {
  Speed speed;
  if (recent_steps_.empty()) return speed;
  std::int64_t tokens = 0;
  absl::Duration time;
  for (const StepResult& step : recent_steps_) {
    tokens += step.tokens;
    time += step.wait_time + step.side_time + step.optimizer_time;
  }
  const double seconds = std::max(absl::ToDoubleSeconds(time), 1e-9);
  speed.tokens_per_second = static_cast<double>(tokens) / seconds;
  speed.seconds_per_step = seconds / static_cast<double>(recent_steps_.size());
  return speed;
}

void Trainer::ReportProgress(std::int64_t step) {
  if (!callbacks_.on_progress) return;
  v1::JobProgress progress;
  progress.set_step(static_cast<std::uint64_t>(step));
  progress.set_total_steps(static_cast<std::uint64_t>(plan_->total_steps()));
  progress.set_epoch(plan_->EpochAfter(step));
  if (last_loss_) progress.set_loss(*last_loss_);
  const Speed speed = RecentSpeed();
  progress.set_tokens_per_second(speed.tokens_per_second);
  progress.set_eta_s(speed.seconds_per_step * static_cast<double>(plan_->total_steps() - step));
  for (const auto& [name, value] : state_.last_eval) (*progress.mutable_eval_metrics())[name] = value;
  callbacks_.on_progress(progress);
}

void Trainer::ReportState(TrainerCallbacks::State state) {
  if (callbacks_.on_state) callbacks_.on_state(state);
}

void Trainer::ReportMessage(const std::string& message) {
  if (callbacks_.on_message) callbacks_.on_message(message);
}

double Trainer::ElapsedSeconds() const { return elapsed_before_s_ + absl::ToDoubleSeconds(absl::Now() - run_start_); }

}  // namespace qst
