#include "worker/host_train_part.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "proto/support/plan_id.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/host_attachment.h"
#include "worker/host_frozen.h"
#include "worker/host_job_data.h"
#include "worker/host_job_yaml.h"
#include "worker/side/side_config.h"
#include "worker/side/side_memory.h"
#include "worker/side/side_network.h"
#include "worker/stream/live_stream.h"
#include "worker/stream/replay_stream.h"
#include "worker/train/settings.h"
#include "worker/train/trainer.h"
#include "worker/worker_memory.h"

namespace qst {
namespace {

// For the stages to say goodbye after the last pass.
constexpr absl::Duration kGoodbyeTimeout = absl::Seconds(10);

class TrainPart : public Part {
 public:
  TrainPart(const v1::HostPart& command, const PartContext& context)
      : plan_(command.plan()),
        work_(command.train()),
        context_(context),
        id_(HostedPartOf(command)),
        key_(absl::StrCat(id_.plan_id(), " side network")),
        attachment_(command.plan(), context) {}

  ~TrainPart() override { ReleaseMemory(); }

  void Attach(const v1::JobPlan& plan, std::shared_ptr<InprocHub> hub) override {
    spdlog::info("job {}: side network: attaches to the stages of plan {}", id_.job_id(), plan.plan_id());
    attachment_.Attach(plan, std::move(hub));
  }

  void Abort(const absl::Status& reason) override {
    is_released_ = true;
    Stop(reason);
  }

  void Cancel() override {
    is_cancelled_ = true;
    Stop(absl::CancelledError("the job was cancelled"));
  }

  void Run() override {
    ReportPart(v1::PART_STATE_LOADING);
    const absl::Status status = Execute();
    ReleaseMemory();
    if (is_released_) return;
    if (!status.ok()) {
      // Cancelled by the user, or broken by what cancelling does to the stages.
      const bool is_cancelled = is_cancelled_;
      attachment_.Abort(status);
      if (is_cancelled) {
        spdlog::info("job {}: cancelled", id_.job_id());
        ReportState(v1::JOB_STATE_CANCELLED, "cancelled on request");
      } else {
        spdlog::error("job {}: side network: {}", id_.job_id(), status.ToString());
        ReportState(v1::JOB_STATE_FAILED, std::string(status.message()));
      }
    }
    ReportPart(v1::PART_STATE_RELEASED);
  }

 private:
  void Stop(const absl::Status& reason) {
    {
      absl::MutexLock lock(&mutex_);
      if (trainer_ != nullptr) trainer_->Cancel();
    }
    attachment_.Abort(reason);
  }

  absl::Status CheckNotStopped() const {
    if (is_cancelled_ || is_released_) return absl::CancelledError("the job was cancelled");
    return absl::OkStatus();
  }

  absl::Status Execute() {
    const v1::JobSpec& spec = work_.spec();
    // Everything that can be wrong with the job itself is found before the stages are kept waiting.
    QST_ASSIGN_OR_RETURN(const TrainSettings settings, ResolveTrainSettings(spec));
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, StoredModel::Open(plan_.model_path()));
    QST_ASSIGN_OR_RETURN(
        JobData data, LoadJobData(work_, plan_.model_path(), [this](const std::string& line) { ReportMessage(line); }));
    QST_RETURN_IF_ERROR(CheckNotStopped());
    const v1::TaskType task = spec.task().type();
    QST_ASSIGN_OR_RETURN(SideNetworkConfig side,
                         ResolveSideConfig(spec.side(), task, data.labels, DimsOf(model->config())));
    side.base_model = spec.model();
    QST_RETURN_IF_ERROR(data.train.Check(side, "training"));
    QST_RETURN_IF_ERROR(data.eval.Check(side, "evaluation"));
    TrimMalloc();
    // An example that is longer than a micro-batch is one all the same.
    const std::int64_t max_tokens =
        std::max({settings.micro_batch_tokens, data.train.max_length(), data.eval.max_length()});
    QST_RETURN_IF_ERROR(ReserveMemory(side, settings, *model, max_tokens));
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<FrozenWeights> frozen,
                         FrozenWeights::Load(context_.ops, *model, !side.has_score_head()));

    const LiveStreamOptions stream_options = StreamOptions(*model);
    QST_ASSIGN_OR_RETURN(std::shared_ptr<LiveStream> stages, attachment_.Connect(stream_options));
    if (stages->num_layers() != model->config().num_layers) {
      return absl::InvalidArgumentError(absl::StrCat("the plan's stages have ", stages->num_layers(),
                                                     " layers, the model ", model->config().num_layers));
    }
    ReportPart(v1::PART_STATE_READY);
    ReplayStream stream(std::move(stages), [&](const absl::Status& lost) { return Reattach(stream_options, lost); });
    TrainerOptions trainer_options;
    trainer_options.settings = settings;
    trainer_options.side = std::move(side);
    trainer_options.job_folder = work_.job_path();
    absl::StatusOr<std::unique_ptr<Trainer>> trainer =
        Trainer::Create(std::move(trainer_options), frozen->head(), std::move(data.train), std::move(data.eval),
                        &stream, context_.ops, Callbacks());
    QST_RETURN_IF_ERROR(trainer.status());
    {
      absl::MutexLock lock(&mutex_);
      trainer_ = trainer->get();
    }
    absl::Status status = CheckNotStopped();
    if (status.ok()) status = (*trainer)->Run();
    {
      absl::MutexLock lock(&mutex_);
      trainer_ = nullptr;
    }
    QST_RETURN_IF_ERROR(status);
    QST_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(work_.job_path(), "/results/job.yaml"), JobSpecToYaml(spec)));
    Finish(&stream);
    ReportState(v1::JOB_STATE_SUCCEEDED, "");
    return absl::OkStatus();
  }

  // The stages are lost; all that was learned is here. Waits until the coordinator has placed them again.
  absl::StatusOr<std::shared_ptr<LiveStream>> Reattach(const LiveStreamOptions& options, const absl::Status& lost) {
    QST_RETURN_IF_ERROR(CheckNotStopped());
    spdlog::warn("job {}: side network: stages lost: {}", id_.job_id(), std::string(lost.message()));
    QST_ASSIGN_OR_RETURN(std::shared_ptr<LiveStream> stages,
                         attachment_.Reconnect(options, [&] { ReportPart(v1::PART_STATE_DETACHED, lost); }));
    ReportPart(v1::PART_STATE_READY);
    return stages;
  }

  // Ends the stages and collects what they have to say. The results are on disk: stages that are slow to leave, or
  // gone, change nothing.
  void Finish(ReplayStream* stream) {
    absl::Status closed = stream->Finish();
    if (closed.ok()) closed = attachment_.Close(kGoodbyeTimeout);
    if (!closed.ok()) spdlog::warn("job {}: side network: {}", id_.job_id(), std::string(closed.message()));
    for (const std::string& note : attachment_.PeerNotes()) {
      if (!note.empty()) ReportMessage(note);
    }
    ReportMessage(absl::StrFormat("side network on %s: waited %.2f s for hidden states; %s", context_.worker_id,
                                  absl::ToDoubleSeconds(stream->waiting_time()), DescribeMemory(context_)));
  }

  // Without the stages.
  LiveStreamOptions StreamOptions(const StoredModel& model) const {
    LiveStreamOptions options;
    options.hidden_size = model.config().hidden_size;
    options.wire_dtype = WireDtypeOf(plan_);
    options.ctx = context_.ops;
    options.max_passes_in_flight = plan_.max_passes_in_flight();
    options.max_pass_tokens = MaxPassTokens(plan_);
    return options;
  }

  // Sets aside what training takes: the network, its optimizer and activations, the frozen head, the states in flight.
  absl::Status ReserveMemory(const SideNetworkConfig& side, const TrainSettings& settings, const StoredModel& model,
                             std::int64_t max_tokens) {
    const DeviceType device = context_.ops.device;
    std::int64_t network = EstimateSideMemory(side, device, max_tokens).total_bytes();
    if (settings.linear_probe) {
      const SideMemory probe = EstimateSideMemory(ProbeOf(side), device, max_tokens);
      network += probe.total_bytes() - probe.workspace_bytes;  // one for both
    }
    const std::int64_t head = side.has_score_head() ? 0 : model.HeadBytes();
    const std::int64_t states =
        LiveStream::StateBytes(StreamOptions(model), side.first_layer(), side.backbone.num_layers);
    if (!context_.device->is_cuda()) {
      SetHostBudget(network + head + states);
      return absl::OkStatus();
    }
    // The host has the pages of the model's file while they are copied; states pass through it at worst.
    SetHostBudget(head + states);
    return context_.device->Reserve(
        key_, network + head + states,
        absl::StrCat("side network: parameters and activations ", FormatBytes(network), ", LM head ", FormatBytes(head),
                     ", hidden states on their way ", FormatBytes(states)));
  }

  // The dearer of two phases. Reading and tokenising the data is over, so what it took is known; for training it is
  // what is in use now and `num_bytes` besides.
  void SetHostBudget(std::int64_t num_bytes) {
    const ProcessMemory process = ReadProcessMemory();
    // Counted by the budget already: what the idle process used, and other parts.
    const std::int64_t before = context_.memory->total_bytes();
    const std::int64_t training = std::max<std::int64_t>(0, process.resident_bytes - before) + num_bytes;
    context_.memory->Set(key_, std::max(process.peak_bytes - before, training));
  }

  void ReleaseMemory() {
    context_.memory->Remove(key_);
    context_.device->Unreserve(key_);
  }

  TrainerCallbacks Callbacks() {
    TrainerCallbacks callbacks;
    callbacks.on_metrics = [this](const std::string& line) {
      v1::JobReport report = NewReport();
      report.set_metrics_json(line);
      context_.reports->AddJob(std::move(report));
    };
    callbacks.on_progress = [this](const v1::JobProgress& progress) {
      v1::JobReport report = NewReport();
      *report.mutable_progress() = progress;
      context_.reports->AddJob(std::move(report));
    };
    callbacks.on_state = [this](TrainerCallbacks::State state) {
      ReportState(state == TrainerCallbacks::State::kEvaluating ? v1::JOB_STATE_EVALUATING : v1::JOB_STATE_RUNNING, "");
    };
    callbacks.on_message = [this](const std::string& message) { ReportMessage(message); };
    return callbacks;
  }

  v1::JobReport NewReport() const {
    v1::JobReport report;
    report.set_job_id(id_.job_id());
    report.set_plan_id(AttemptOf(id_.plan_id()));
    return report;
  }

  void ReportMessage(const std::string& message) {
    spdlog::info("job {}: {}", id_.job_id(), message);
    v1::JobReport report = NewReport();
    report.set_message(message);
    context_.reports->AddJob(std::move(report));
  }

  void ReportState(v1::JobState state, const std::string& message) {
    v1::JobReport report = NewReport();
    report.mutable_state()->set_state(state);
    report.mutable_state()->set_message(message);
    context_.reports->AddJob(std::move(report));
  }

  void ReportPart(v1::PartState state, const absl::Status& status = absl::OkStatus()) {
    v1::PartReport report;
    *report.mutable_part() = id_;
    report.mutable_part()->set_plan_id(attachment_.plan_id());
    report.set_state(state);
    report.set_code(static_cast<std::int32_t>(status.code()));
    report.set_message(std::string(status.message()));
    context_.reports->AddPart(report);
  }

  const v1::JobPlan plan_;
  const v1::TrainWork work_;
  const PartContext context_;
  const v1::HostedPart id_;
  const std::string key_;
  StageAttachment attachment_;
  std::atomic<bool> is_released_{false};
  std::atomic<bool> is_cancelled_{false};
  absl::Mutex mutex_;
  Trainer* trainer_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace

std::unique_ptr<Part> MakeTrainPart(const v1::HostPart& command, const PartContext& context) {
  return std::make_unique<TrainPart>(command, context);
}

}  // namespace qst
