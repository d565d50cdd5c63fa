#include "server/job_manager.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/plan_id.h"
#include "proto/support/status_macros.h"
#include "server/job_spec_defaults.h"
#include "server/job_state.h"
#include "server/log.h"
#include "server/placement.h"

namespace qst {
namespace {

constexpr std::uint32_t kDefaultListLimit = 100;
constexpr std::size_t kMaxRequestIdBytes = 256;

}  // namespace

JobManager::JobManager(Services services, StoreLayout layout, JobManagerOptions options)
    : services_(services),
      layout_(std::move(layout)),
      options_(options),
      watchers_(services.store),
      settled_at_(services.executor->Now() + options.settle) {}

JobManager::ActiveJob* JobManager::Find(const std::string& id) const {
  const auto found = active_.find(id);
  return found == active_.end() ? nullptr : found->second.get();
}

JobManager::ActiveJob* JobManager::FindPlan(const std::string& plan_id) const {
  for (const auto& [id, job] : active_) {
    if (job->plan.has_value() && job->plan->id() == plan_id) return job.get();
  }
  return nullptr;
}

JobManager::ActiveJob* JobManager::FindAttempt(const std::string& plan_id) const {
  for (const auto& [id, job] : active_) {
    if (job->plan.has_value() && AttemptOf(job->plan->id()) == AttemptOf(plan_id)) return job.get();
  }
  return nullptr;
}

v1::JobEvent JobManager::NewEvent(ActiveJob* job) {
  v1::JobEvent event;
  event.set_sequence(++job->record.last_sequence);
  event.set_time_ms(absl::ToUnixMillis(services_.executor->Now()));
  return event;
}

absl::Status JobManager::Save(ActiveJob* job, const std::vector<v1::JobEvent>& events, Durability durability) {
  const absl::Status saved = services_.store->UpdateJob(job->record, events, durability);
  if (!saved.ok()) {
    LogError(absl::StrCat("job ", job->id(), ": cannot be stored: ", saved.ToString()));
    return saved;
  }
  if (!events.empty()) watchers_.Notify(job->id());
  return absl::OkStatus();
}

absl::Status JobManager::Transition(ActiveJob* job, v1::JobState to, const std::string& message) {
  const v1::JobState from = job->record.job.state();
  if (!IsJobTransitionAllowed(from, to)) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", job->id(), " cannot go from ", JobStateName(from), " to ", JobStateName(to)));
  }
  const JobRecord before = job->record;
  const std::int64_t now_ms = absl::ToUnixMillis(services_.executor->Now());
  v1::JobEvent event = NewEvent(job);
  event.mutable_state()->set_from(from);
  event.mutable_state()->set_to(to);
  event.mutable_state()->set_message(message);
  v1::Job& state = job->record.job;
  state.set_state(to);
  state.set_status_message(message);
  if (to == v1::JOB_STATE_PREPARING && state.started_ms() == 0) state.set_started_ms(now_ms);
  if (IsFinalJobState(to)) state.set_finished_ms(now_ms);
  const absl::Status saved = Save(job, {event}, Durability::kSynced);
  if (!saved.ok()) {
    job->record = before;
    return saved;
  }
  LogInfo(absl::StrCat("job ", job->id(), ": ", JobStateName(from), " -> ", JobStateName(to),
                       message.empty() ? "" : ": ", message));
  return absl::OkStatus();
}

void JobManager::AddMessage(ActiveJob* job, const std::string& message) {
  const JobRecord before = job->record;
  v1::JobEvent event = NewEvent(job);
  event.set_message(message);
  if (!Save(job, {event}, Durability::kProcess).ok()) job->record = before;
}

void JobManager::SetStatus(ActiveJob* job, const std::string& message) {
  if (job->record.job.status_message() == message) return;
  job->record.job.set_status_message(message);
  AddMessage(job, message);
}

absl::StatusOr<v1::Job> JobManager::Submit(const v1::SubmitJobRequest& request) {
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("request_id: must be at most ", kMaxRequestIdBytes, " bytes"));
  }
  QST_ASSIGN_OR_RETURN(const std::optional<JobRecord> earlier, services_.store->FindJobByRequest(request.request_id()));
  if (earlier.has_value()) return earlier->job;

  v1::JobSpec spec = request.spec();
  FillJobSpecDefaults(&spec);
  QST_RETURN_IF_ERROR(ValidateJobSpec(spec));
  const absl::StatusOr<v1::Model> model = services_.models->GetReady(spec.model());
  if (!model.ok()) return Annotate(model.status(), "model");
  QST_RETURN_IF_ERROR(MatchModel(*model, &spec));
  // By id from here on: a name may come to mean another content.
  QST_ASSIGN_OR_RETURN(const v1::Dataset train, services_.datasets->Resolve(spec.data().train(), "data.train"));
  spec.mutable_data()->set_train(train.id());
  if (!spec.data().eval().empty()) {
    QST_ASSIGN_OR_RETURN(const v1::Dataset eval, services_.datasets->Resolve(spec.data().eval(), "data.eval"));
    spec.mutable_data()->set_eval(eval.id());
  }

  auto job = std::make_unique<ActiveJob>();
  job->record.request_id = request.request_id();
  v1::Job& state = job->record.job;
  do {
    state.set_id("j-" + RandomHex(8));
  } while (services_.store->GetJob(state.id()).ok());
  *state.mutable_spec() = spec;
  state.set_state(v1::JOB_STATE_QUEUED);
  state.set_status_message("accepted");
  state.set_created_ms(absl::ToUnixMillis(services_.executor->Now()));
  v1::JobEvent event = NewEvent(job.get());
  event.mutable_state()->set_to(v1::JOB_STATE_QUEUED);
  event.mutable_state()->set_message("accepted");
  QST_RETURN_IF_ERROR(services_.store->CreateJob(job->record, {event}));
  const std::string id = state.id();
  LogInfo(absl::StrCat("job ", id, " '", spec.name(), "': accepted, model ", spec.model()));
  active_[id] = std::move(job);
  Enqueue(id);
  Schedule();
  return Get(id);
}

absl::StatusOr<v1::Job> JobManager::Get(const std::string& id) {
  const absl::StatusOr<JobRecord> record = services_.store->GetJob(id);
  if (absl::IsNotFound(record.status())) return absl::NotFoundError(absl::StrCat("no job '", id, "'; see `qst jobs`"));
  QST_RETURN_IF_ERROR(record.status());
  return record->job;
}

absl::StatusOr<std::vector<v1::Job>> JobManager::List(const v1::ListJobsRequest& request) {
  std::vector<v1::JobState> states;
  for (const int state : request.states()) states.push_back(static_cast<v1::JobState>(state));
  QST_ASSIGN_OR_RETURN(std::vector<JobRecord> records,
                       services_.store->ListJobs(states, request.limit() == 0 ? kDefaultListLimit : request.limit()));
  std::vector<v1::Job> jobs;
  for (JobRecord& record : records) jobs.push_back(std::move(record.job));
  return jobs;
}

bool JobManager::UsesModel(const std::string& name) const {
  return std::any_of(active_.begin(), active_.end(),
                     [&](const auto& entry) { return entry.second->record.job.spec().model() == name; });
}

bool JobManager::UsesDataset(const std::string& id) const {
  return std::any_of(active_.begin(), active_.end(), [&](const auto& entry) {
    const v1::DataConfig& data = entry.second->record.job.spec().data();
    return data.train() == id || data.eval() == id;
  });
}

void JobManager::Enqueue(const std::string& id) {
  // A job that comes back to the queue goes before those that came later.
  const std::int64_t created_ms = Find(id)->record.job.created_ms();
  const auto place = std::find_if(queue_.begin(), queue_.end(), [&](const std::string& other) {
    return Find(other)->record.job.created_ms() > created_ms;
  });
  queue_.insert(place, id);
}

void JobManager::Schedule() {
  // What runs already comes before what waits.
  RepairAll();
  while (!queue_.empty()) {
    ActiveJob* job = Find(queue_.front());
    const absl::StatusOr<bool> placed = TryPlace(job);
    if (!placed.ok()) {
      // What the job needs is gone or has changed since it was accepted.
      const std::string id = queue_.front();
      End(job, v1::JOB_STATE_FAILED, std::string(placed.status().message()));
      if (!queue_.empty() && queue_.front() == id) break;  // the store is in trouble; End tries again
      continue;
    }
    if (!*placed) break;
  }
  for (std::size_t i = 1; i < queue_.size(); ++i) {
    SetStatus(Find(queue_[i]), absl::StrCat("waiting behind job ", queue_[i - 1]));
  }
}

absl::StatusOr<bool> JobManager::TryPlace(ActiveJob* job) {
  const v1::JobSpec& spec = job->record.job.spec();
  if (services_.models->IsBeingReplaced(spec.model())) {
    SetStatus(job, absl::StrCat("waiting for model '", spec.model(), "', which is being replaced"));
    return false;
  }
  QST_ASSIGN_OR_RETURN(const v1::Model model, services_.models->GetReady(spec.model()));
  v1::JobSpec matched = spec;
  QST_RETURN_IF_ERROR(MatchModel(model, &matched));
  const v1::ResourceConfig& resources = spec.resources();
  const bool takes_what_is_there = resources.stages() == 0 && resources.workers() == 0;
  const bool takes_any_kind = resources.device() != v1::DEVICE_KIND_CPU && resources.device() != v1::DEVICE_KIND_CUDA;
  if ((takes_what_is_there || (takes_any_kind && job->is_inherited)) && services_.executor->Now() < settled_at_) {
    SetStatus(job, "waiting for workers to register");
    return false;
  }
  const PlacementDecision decision = Place({resources, model, LoadOfTraining(spec)}, services_.registry->Offers());
  if (!decision.is_placed) {
    SetStatus(job, decision.message);
    return false;
  }

  const JobRecord before = job->record;
  *job->record.job.mutable_placement() = decision.placement;
  // Decided once: a job that resumes goes on with the arithmetic that it began with.
  v1::JobSpec* used_spec = job->record.job.mutable_spec();
  used_spec->mutable_resources()->set_device(decision.placement.device());
  if (decision.placement.device() == v1::DEVICE_KIND_CPU) {
    used_spec->mutable_train()->set_dtype(v1::COMPUTE_DTYPE_F32);
    used_spec->mutable_train()->set_tf32(false);
  }
  job->record.job.set_attempt(job->record.job.attempt() + 1);
  job->record.report_sequence = 0;
  const absl::Status moved = Transition(job, v1::JOB_STATE_PREPARING, absl::StrCat("placed: ", decision.message));
  if (!moved.ok()) {
    // The store is in trouble, not the job: it stays queued.
    job->record = before;
    return false;
  }
  queue_.erase(std::find(queue_.begin(), queue_.end(), job->id()));
  job->progress_stored = absl::InfinitePast();
  job->plan.emplace(BuildPlan(job->record.job, model.name()));
  services_.rendezvous->Open(job->plan->id());
  for (const PlanPart& part : job->plan->parts()) {
    LogInfo(absl::StrCat("job ", job->id(), ": ", PartName(part.id.is_side(), part.id.stage()), " goes to ",
                         services_.registry->Describe(part.worker_id)));
  }
  job->plan->Start(services_.registry);
  return true;
}

Plan JobManager::BuildPlan(const v1::Job& job, const std::string& model_name, const std::string& attached_from) const {
  v1::JobPlan plan;
  plan.set_job_id(job.id());
  plan.set_plan_id(PlanId(job));
  CopyPlacement(job.placement(), &plan);
  plan.set_model_path(layout_.ModelPath(model_name));
  plan.set_wire_dtype(job.spec().train().wire_dtype());
  plan.set_compute_dtype(job.spec().train().dtype());
  plan.set_side_tf32(job.spec().train().tf32());
  plan.set_max_passes_in_flight(job.spec().train().max_passes_in_flight());
  plan.set_backbone_batch_tokens(job.spec().train().backbone_batch_tokens());
  plan.set_max_sequence_tokens(job.spec().data().max_length());
  v1::HostPart side_work;
  v1::TrainWork* train = side_work.mutable_train();
  *train->mutable_spec() = job.spec();
  train->set_job_path(layout_.JobPath(job.id()));
  const auto path_of = [this](const std::string& id) {
    const absl::StatusOr<v1::Dataset> dataset = services_.datasets->Resolve(id, "data");
    return dataset.ok() ? services_.datasets->PathOf(*dataset) : "";
  };
  train->set_train_path(path_of(job.spec().data().train()));
  if (!job.spec().data().eval().empty()) train->set_eval_path(path_of(job.spec().data().eval()));
  return Plan(std::move(plan), std::move(side_work), attached_from);
}

}  // namespace qst
