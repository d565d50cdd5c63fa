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
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/host_frozen.h"
#include "worker/host_job_data.h"
#include "worker/host_job_yaml.h"
#include "worker/host_link.h"
#include "worker/side/side_config.h"
#include "worker/side/side_network.h"
#include "worker/stream/live_stream.h"
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
        link_(command.plan(), RankOf(command.plan(), command), context) {}

  ~TrainPart() override { context_.memory->Remove(key_); }

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
    context_.memory->Remove(key_);
    if (is_released_) return;
    if (!status.ok()) {
      // Cancelled by the user, or broken by what cancelling does to the stages.
      const bool is_cancelled = is_cancelled_;
      link_.Abort(status);
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
    link_.Abort(reason);
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
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<FrozenWeights> frozen,
                         FrozenWeights::Load(*model, task != v1::TASK_TYPE_CLASSIFICATION));
    QST_RETURN_IF_ERROR(data.train.Check(side, "training"));
    QST_RETURN_IF_ERROR(data.eval.Check(side, "evaluation"));
    TrimMalloc();
    context_.memory->Set(key_, BudgetBytes(side, settings, *model));

    QST_ASSIGN_OR_RETURN(Transport * transport, link_.Connect());
    ReportPart(v1::PART_STATE_READY);
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<LiveStream> stream,
                         LiveStream::Create(*transport, StreamOptions(*model)));
    if (stream->num_layers() != model->config().num_layers) {
      return absl::InvalidArgumentError(absl::StrCat("the plan's stages have ", stream->num_layers(),
                                                     " layers, the model ", model->config().num_layers));
    }
    TrainerOptions trainer_options;
    trainer_options.settings = settings;
    trainer_options.side = std::move(side);
    trainer_options.job_folder = work_.job_path();
    absl::StatusOr<std::unique_ptr<Trainer>> trainer =
        Trainer::Create(std::move(trainer_options), frozen->head(), std::move(data.train), std::move(data.eval),
                        stream.get(), context_.ops, Callbacks());
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
    QST_RETURN_IF_ERROR(Finish(stream.get(), transport));
    ReportState(v1::JOB_STATE_SUCCEEDED, "");
    return absl::OkStatus();
  }

  // Ends the stages and collects what they have to say.
  absl::Status Finish(LiveStream* stream, Transport* transport) {
    QST_RETURN_IF_ERROR(stream->Finish());
    const absl::Status closed = link_.Close(kGoodbyeTimeout, "");
    // The results are on disk: a stage that is slow to leave changes nothing.
    if (!closed.ok()) spdlog::warn("job {}: side network: {}", id_.job_id(), std::string(closed.message()));
    for (const std::string& note : transport->PeerNotes()) {
      if (!note.empty()) ReportMessage(note);
    }
    ReportMessage(absl::StrFormat("side network on %s: waited %.2f s for hidden states; memory: peak %s of budget %s",
                                  context_.worker_id, absl::ToDoubleSeconds(stream->waiting_time()),
                                  FormatMegabytes(ReadProcessMemory().peak_bytes),
                                  FormatMegabytes(context_.memory->total_bytes())));
    return absl::OkStatus();
  }

  LiveStreamOptions StreamOptions(const StoredModel& model) const {
    LiveStreamOptions options;
    for (const v1::PlacedStage& stage : plan_.stages()) {
      options.stages.push_back({stage.first_layer(), stage.num_layers()});
    }
    options.hidden_size = model.config().hidden_size;
    options.wire_dtype = WireDtypeOf(plan_);
    options.ctx = context_.ops;
    options.max_passes_in_flight = plan_.max_passes_in_flight();
    options.max_pass_tokens = MaxPassTokens(plan_);
    return options;
  }

  // The dearer of two phases. Reading and tokenising the data is over, so what it took is known; for training it is
  // what is in use now, and the network, its optimizer and activations, the states in flight and the LM head besides.
  std::int64_t BudgetBytes(const SideNetworkConfig& side, const TrainSettings& settings,
                           const StoredModel& model) const {
    const ProcessMemory process = ReadProcessMemory();
    // Counted by the budget already: what the idle process used, and other parts.
    const std::int64_t before = context_.memory->total_bytes();
    const std::int64_t training =
        std::max<std::int64_t>(0, process.resident_bytes - before) +
        EstimateSideMemory(side, settings.micro_batch_tokens).total_bytes() +
        LiveStream::StateBytes(StreamOptions(model), side.first_layer(), side.backbone.num_layers) +
        (side.is_classification() ? 0 : model.HeadBytes());
    return std::max(process.peak_bytes - before, training);
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
    report.set_plan_id(id_.plan_id());
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

  void ReportPart(v1::PartState state) {
    v1::PartReport report;
    *report.mutable_part() = id_;
    report.set_state(state);
    context_.reports->AddPart(report);
  }

  const v1::JobPlan plan_;
  const v1::TrainWork work_;
  const PartContext context_;
  const v1::HostedPart id_;
  const std::string key_;
  PartLink link_;
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
