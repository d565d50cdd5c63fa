// How placed jobs go on and end: reports, failures, cancellation, recovery.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/plan_id.h"
#include "proto/support/status_macros.h"
#include "server/job_manager.h"
#include "server/job_state.h"
#include "server/log.h"
#include "server/placement.h"

namespace qst {
namespace {

// Errors that a part may have because a peer of it went away, not because of itself.
bool MayBeConsequence(int code) {
  switch (static_cast<absl::StatusCode>(code)) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
      return true;
    default:
      return false;
  }
}

// Errors that a stage has because a peer of it went away, never because of itself.
bool IsLossOfPeer(int code) {
  switch (static_cast<absl::StatusCode>(code)) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status JobManager::Recover() {
  QST_ASSIGN_OR_RETURN(
      std::vector<JobRecord> records,
      services_.store->ListJobs(
          {v1::JOB_STATE_QUEUED, v1::JOB_STATE_PREPARING, v1::JOB_STATE_RUNNING, v1::JOB_STATE_EVALUATING}, 0));
  std::reverse(records.begin(), records.end());
  std::vector<std::string> ids;
  for (JobRecord& record : records) {
    auto job = std::make_unique<ActiveJob>();
    job->record = std::move(record);
    job->is_inherited = true;
    ids.push_back(job->id());
    active_[ids.back()] = std::move(job);
  }
  for (const std::string& id : ids) {
    ActiveJob* job = Find(id);
    const v1::JobState state = job->record.job.state();
    if (job->record.cancel_requested) {
      End(job, v1::JOB_STATE_CANCELLED, "cancelled on request");
    } else if (state == v1::JOB_STATE_QUEUED) {
      Enqueue(id);
    } else if (state == v1::JOB_STATE_PREPARING) {
      // What its parts had told each other is gone with the earlier coordinator, and no step is lost yet.
      Requeue(job, "the coordinator restarted while the job was being prepared; it is placed anew");
    } else {
      job->plan.emplace(BuildPlan(job->record.job, job->record.job.spec().model()));
      job->is_recovering = true;
      job->was_recovered = true;
      job->parts_back.assign(job->plan->parts().size(), false);
      job->parts_missing = job->parts_back;
      const std::string plan_id = job->plan->id();
      services_.rendezvous->Open(plan_id);
      LogInfo(absl::StrCat("job ", id, ": was ", JobStateName(state), "; its workers have ",
                           absl::FormatDuration(options_.recover_grace), " to come back"));
      services_.executor->PostAfter(options_.recover_grace, [this, plan_id] {
        ActiveJob* recovering = FindPlan(plan_id);
        if (recovering != nullptr && recovering->is_recovering) EndRecovery(recovering, /*is_last_chance=*/true);
      });
    }
  }
  return absl::OkStatus();
}

void JobManager::End(ActiveJob* job, v1::JobState state, const std::string& message) {
  const absl::Status moved = Transition(job, state, message);
  if (!moved.ok()) {
    // Nothing may be announced that is not stored. Try again: the store's trouble (a full disk) may pass.
    LogError(absl::StrCat("job ", job->id(), ": cannot become ", JobStateName(state), ": ", moved.ToString()));
    services_.executor->PostAfter(absl::Seconds(1), [this, id = job->id(), state, message] {
      if (ActiveJob* again = Find(id); again != nullptr) End(again, state, message);
    });
    return;
  }
  if (job->plan.has_value()) {
    services_.rendezvous->Close(job->plan->id());
    services_.registry->ReleasePlan(job->plan->id());
  }
  queue_.erase(std::remove(queue_.begin(), queue_.end(), job->id()), queue_.end());
  active_.erase(job->id());
}

void JobManager::Requeue(ActiveJob* job, const std::string& message) {
  const JobRecord before = job->record;
  job->record.job.clear_placement();
  job->record.report_sequence = 0;
  const absl::Status moved = Transition(job, v1::JOB_STATE_QUEUED, message);
  if (!moved.ok()) {
    job->record = before;
    LogError(absl::StrCat("job ", job->id(), ": cannot be queued again: ", moved.ToString()));
    services_.executor->PostAfter(absl::Seconds(1), [this, id = job->id(), message] {
      ActiveJob* again = Find(id);
      if (again != nullptr && IsPlacedJobState(again->record.job.state())) Requeue(again, message);
    });
    return;
  }
  job->is_recovering = false;
  job->was_recovered = false;
  job->held_failure.reset();
  job->repair.reset();
  job->reattaching_since.reset();
  job->is_loss_suspected = false;
  if (job->plan.has_value()) {
    services_.rendezvous->Close(job->plan->id());
    services_.registry->ReleasePlan(job->plan->id());
    job->plan.reset();
  }
  Enqueue(job->id());
  // Later, because callers may be walking over the jobs. Nothing else may come that would look at the queue again.
  services_.executor->Post([this] { Schedule(); });
}

absl::StatusOr<v1::Job> JobManager::Cancel(const std::string& id) {
  ActiveJob* job = Find(id);
  if (job == nullptr) {
    QST_ASSIGN_OR_RETURN(v1::Job over, Get(id));
    if (over.state() == v1::JOB_STATE_CANCELLED) return over;
    return absl::FailedPreconditionError(absl::StrCat("job ", id, " is ", JobStateName(over.state()), " already"));
  }
  if (!job->plan.has_value() || job->is_recovering) {
    QST_RETURN_IF_ERROR(Transition(job, v1::JOB_STATE_CANCELLED, "cancelled on request"));
    if (job->plan.has_value()) {
      services_.rendezvous->Close(job->plan->id());
      services_.registry->ReleasePlan(job->plan->id());
    }
    queue_.erase(std::remove(queue_.begin(), queue_.end(), id), queue_.end());
    active_.erase(id);
    Schedule();
    return Get(id);
  }
  if (job->record.cancel_requested) return job->record.job;
  const JobRecord before = job->record;
  job->record.cancel_requested = true;
  job->record.job.set_status_message("cancelling");
  v1::JobEvent event = NewEvent(job);
  event.set_message("cancelling");
  const absl::Status saved = Save(job, {event}, Durability::kSynced);
  if (!saved.ok()) {
    job->record = before;
    return saved;
  }
  LogInfo(absl::StrCat("job ", id, ": cancellation requested"));
  const std::string plan_id = job->plan->id();
  v1::WorkerCommand command;
  command.mutable_cancel()->set_plan_id(plan_id);
  services_.registry->Send(job->plan->side_worker_id(), command);
  services_.executor->PostAfter(options_.cancel_grace, [this, plan_id] {
    ActiveJob* late = FindPlan(plan_id);
    if (late != nullptr) End(late, v1::JOB_STATE_CANCELLED, "cancelled on request; its side network did not answer");
  });
  return job->record.job;
}

std::string JobManager::LostMessage(const ActiveJob& job, const std::string& worker_id,
                                    const std::string& reason) const {
  return absl::StrCat(services_.registry->Describe(worker_id), ", hosting ", job.plan->PartsOf(worker_id),
                      ", was lost: ", reason);
}

void JobManager::OnWorkerLost(const std::string& worker_id, const std::string& plan_id, const std::string& reason) {
  ActiveJob* job = FindPlan(plan_id);
  if (job == nullptr) return;
  const std::string message = LostMessage(*job, worker_id, reason);
  if (job->record.cancel_requested) {
    End(job, v1::JOB_STATE_CANCELLED, "cancelled on request");
  } else if (worker_id != job->plan->side_worker_id() && job->is_recovering) {
    for (std::size_t i = 0; i < job->plan->parts().size() && job->is_recovering; ++i) {
      if (job->plan->parts()[i].worker_id == worker_id) PartIsMissing(job, i);
    }
  } else if (worker_id != job->plan->side_worker_id() && CanRepair(*job)) {
    BeginRepair(job, {worker_id}, message);
  } else if (job->is_recovering) {
    Requeue(job, message);
  } else if (CountLoss(job, message)) {
    Requeue(job, absl::StrCat(message, "; the job resumes from its newest checkpoint, if it has one"));
  }
}

void JobManager::FailOrHold(ActiveJob* job, HeldFailure failure) {
  if (job->record.cancel_requested) {
    // What breaks while a job is taken down says nothing.
    End(job, v1::JOB_STATE_CANCELLED, "cancelled on request");
    return;
  }
  if (job->held_failure.has_value()) return;  // the first error wins
  job->held_failure = std::move(failure);
  if (!job->held_failure->may_be_consequence || !job->plan->AwayWorker(*services_.registry).empty()) {
    FailHeld(job);
    return;
  }
  services_.executor->PostAfter(options_.failure_hold, [this, plan_id = job->plan->id()] {
    ActiveJob* held = FindPlan(plan_id);
    if (held != nullptr && held->held_failure.has_value()) FailHeld(held);
  });
}

void JobManager::FailHeld(ActiveJob* job) {
  const HeldFailure failure = *job->held_failure;
  std::string message = failure.message;
  const std::string away = job->plan->AwayWorker(*services_.registry);
  if (!away.empty()) {
    message = absl::StrCat(LostMessage(*job, away, "connection closed"), "; then ", message);
    if (failure.may_be_consequence) {
      job->held_failure.reset();
      if (CountLoss(job, message)) {
        Requeue(job, absl::StrCat(message, "; the job resumes from its newest checkpoint, if it has one"));
      }
      return;
    }
  }
  if (failure.report_sequence > 0) job->record.report_sequence = failure.report_sequence;
  const std::string side_worker_id = job->plan->side_worker_id();
  const std::string plan_id = AttemptOf(job->plan->id());
  End(job, v1::JOB_STATE_FAILED, message);
  // As long as the outcome is not stored the worker keeps its report: this process may die before it is.
  if (failure.report_sequence > 0 && FindAttempt(plan_id) == nullptr)
    Acknowledge(side_worker_id, plan_id, failure.report_sequence);
}

void JobManager::OnPartReport(const std::string& worker_id, const v1::PartReport& report) {
  ActiveJob* job = FindPlan(report.part().plan_id());
  if (job == nullptr) return;
  PlanPart* part = job->plan->Find(worker_id, report.part());
  const std::string name = PartName(report.part().is_side(), report.part().stage());
  if (part == nullptr) {
    LogWarning(absl::StrCat("job ", job->id(), ": ", services_.registry->Describe(worker_id), " reports on ", name,
                            ", which is not its part"));
    return;
  }
  switch (report.state()) {
    case v1::PART_STATE_LOADING:
      part->phase = PartPhase::kLoading;
      LogDebug(absl::StrCat("job ", job->id(), ": ", name, " loads on worker ", worker_id));
      break;
    case v1::PART_STATE_READY:
      part->phase = PartPhase::kReady;
      LogInfo(absl::StrCat("job ", job->id(), ": ", name, " is ready on worker ", worker_id));
      if (part->id.is_side() && job->reattaching_since.has_value()) SideIsAttached(job);
      if (job->record.job.state() == v1::JOB_STATE_PREPARING && !job->record.cancel_requested) {
        SetStatus(
            job, absl::StrCat("preparing: ", job->plan->NumReady(), " of ", job->plan->parts().size(), " parts ready"));
      }
      break;
    case v1::PART_STATE_FAILED: {
      part->phase = PartPhase::kEnded;
      HeldFailure failure;
      failure.message = absl::StrCat(name, " on ", services_.registry->Describe(worker_id), ": ", report.message());
      if (!part->id.is_side() && IsLossOfPeer(report.code()) && CanRepair(*job)) {
        SuspectLoss(job, failure.message);
        break;
      }
      failure.may_be_consequence = MayBeConsequence(report.code());
      FailOrHold(job, std::move(failure));
      break;
    }
    case v1::PART_STATE_DETACHED:
      part->phase = PartPhase::kLoading;
      if (CanRepair(*job)) {
        SuspectLoss(job, absl::StrCat(name, " on ", services_.registry->Describe(worker_id),
                                      " has lost its stages: ", report.message()));
      } else if (!job->record.cancel_requested && CountLoss(job, report.message())) {
        Requeue(job, absl::StrCat(report.message(), "; the job is placed anew"));
      }
      break;
    case v1::PART_STATE_RELEASED:
      part->phase = PartPhase::kEnded;
      break;
    default:
      LogWarning(absl::StrCat("job ", job->id(), ": ", name, " on worker ", worker_id, " reports no known state"));
  }
}

void JobManager::Acknowledge(const std::string& worker_id, const std::string& plan_id, std::uint64_t sequence) {
  v1::WorkerCommand command;
  command.mutable_job_ack()->set_plan_id(plan_id);
  command.mutable_job_ack()->set_report_sequence(sequence);
  services_.registry->Send(worker_id, command);
}

void JobManager::OnJobReport(const std::string& worker_id, const v1::JobReport& report) {
  const std::string plan_id = AttemptOf(report.plan_id());
  const std::uint64_t sequence = report.report_sequence();
  ActiveJob* job = FindAttempt(plan_id);
  if (job == nullptr) {
    Acknowledge(worker_id, plan_id, sequence);
    v1::HostedPart side;
    side.set_job_id(report.job_id());
    side.set_plan_id(plan_id);
    side.set_is_side(true);
    services_.registry->ReleaseUnknown(worker_id, side);
    return;
  }
  if (worker_id != job->plan->side_worker_id()) {
    LogWarning(absl::StrCat("job ", job->id(), ": ", services_.registry->Describe(worker_id),
                            " reports, but does not host its side network"));
    return;
  }
  const std::uint64_t stored = job->record.report_sequence;
  if (sequence <= stored) {
    Acknowledge(worker_id, plan_id, stored);
    return;
  }
  // It comes again, after reconnection, once the held failure is decided.
  if (job->held_failure.has_value()) return;
  if (sequence != stored + 1 && job->was_recovered) {
    // What was stored last before the machine of the earlier coordinator lost power; final reports are never among it.
    LogWarning(absl::StrCat("job ", job->id(), ": reports ", stored + 1, " to ", sequence - 1,
                            " were lost with the earlier coordinator"));
  } else if (sequence != stored + 1) {
    End(job, v1::JOB_STATE_FAILED,
        absl::StrCat(services_.registry->Describe(worker_id), " sent report ", sequence, " after report ", stored,
                     ": reports were lost"));
    return;
  }
  if (report.kind_case() == v1::JobReport::kState) {
    OnStateReport(job, sequence, report.state());
    return;
  }
  const absl::Status status = StoreReport(job, report);
  if (!status.ok()) {
    // It is sent again in the next session.
    services_.registry->DropSession(worker_id, absl::UnavailableError("a report could not be stored; try again"));
    return;
  }
  Acknowledge(worker_id, plan_id, sequence);
}

absl::Status JobManager::StoreReport(ActiveJob* job, const v1::JobReport& report) {
  const JobRecord before = job->record;
  job->record.report_sequence = report.report_sequence();
  std::vector<v1::JobEvent> events;
  std::optional<v1::JobEvent> transient;
  switch (report.kind_case()) {
    case v1::JobReport::kProgress: {
      *job->record.job.mutable_progress() = report.progress();
      const absl::Time now = services_.executor->Now();
      const bool is_last =
          report.progress().total_steps() > 0 && report.progress().step() >= report.progress().total_steps();
      if (is_last || now - job->progress_stored >= options_.progress_interval) {
        job->progress_stored = now;
        events.push_back(NewEvent(job));
        *events.back().mutable_progress() = report.progress();
      } else {
        transient.emplace();
        transient->set_time_ms(absl::ToUnixMillis(now));
        *transient->mutable_progress() = report.progress();
      }
      break;
    }
    case v1::JobReport::kMetricsJson:
      events.push_back(NewEvent(job));
      events.back().set_metrics_json(report.metrics_json());
      break;
    case v1::JobReport::kMessage:
      events.push_back(NewEvent(job));
      events.back().set_message(report.message());
      if (!job->record.cancel_requested) job->record.job.set_status_message(report.message());
      LogInfo(absl::StrCat("job ", job->id(), ": ", report.message()));
      break;
    default:
      LogWarning(absl::StrCat("job ", job->id(), ": report ", report.report_sequence(), " says nothing known"));
  }
  if (!events.empty() && report.time_ms() > 0) events.back().set_time_ms(report.time_ms());
  const absl::Status saved = Save(job, events, Durability::kProcess);
  if (!saved.ok()) {
    job->record = before;
    return saved;
  }
  if (transient.has_value()) watchers_.NotifyTransient(job->id(), *transient);
  return absl::OkStatus();
}

void JobManager::OnStateReport(ActiveJob* job, std::uint64_t sequence, const v1::JobStateReport& report) {
  const std::string worker_id = job->plan->side_worker_id();
  const std::string plan_id = AttemptOf(job->plan->id());
  const v1::JobState from = job->record.job.state();
  switch (report.state()) {
    case v1::JOB_STATE_RUNNING:
    case v1::JOB_STATE_EVALUATING: {
      const JobRecord before = job->record;
      job->record.report_sequence = sequence;
      const absl::Status status = from == report.state() ? Save(job, {}, Durability::kProcess)
                                                         : Transition(job, report.state(), report.message());
      if (!status.ok()) {
        job->record = before;
        services_.registry->DropSession(worker_id, absl::UnavailableError("a report could not be stored; try again"));
        return;
      }
      break;
    }
    case v1::JOB_STATE_SUCCEEDED:
      // A job that resumes at its very end may never have said that it runs.
      if (from == v1::JOB_STATE_PREPARING && !Transition(job, v1::JOB_STATE_RUNNING, "").ok()) {
        services_.registry->DropSession(worker_id, absl::UnavailableError("a report could not be stored; try again"));
        return;
      }
      job->record.report_sequence = sequence;
      End(job, v1::JOB_STATE_SUCCEEDED, report.message());
      if (FindAttempt(plan_id) != nullptr) return;  // not stored yet, hence not acknowledged
      break;
    case v1::JOB_STATE_CANCELLED:
      if (job->record.cancel_requested) {
        job->record.report_sequence = sequence;
        End(job, v1::JOB_STATE_CANCELLED, "cancelled on request");
        if (FindAttempt(plan_id) != nullptr) return;
        break;
      }
      [[fallthrough]];
    case v1::JOB_STATE_FAILED: {
      HeldFailure failure;
      failure.message = absl::StrCat("side network on ", services_.registry->Describe(worker_id), ": ",
                                     report.message().empty() ? "stopped without a reason" : report.message());
      failure.report_sequence = sequence;
      failure.may_be_consequence = true;
      FailOrHold(job, std::move(failure));
      return;  // acknowledged when it is decided
    }
    default:
      LogWarning(absl::StrCat("job ", job->id(), ": worker ", worker_id, " reports state ",
                              JobStateName(report.state()), ", which is not its to set"));
      job->record.report_sequence = sequence;
  }
  Acknowledge(worker_id, plan_id, sequence);
}

void JobManager::OnHello(const v1::Hello& hello, bool is_new) {
  const std::string& worker_id = hello.worker_id();
  std::vector<std::string> plan_ids;
  for (const auto& [id, job] : active_) {
    if (job->plan.has_value()) plan_ids.push_back(job->plan->id());
  }
  for (const std::string& plan_id : plan_ids) {
    for (std::size_t i = 0;; ++i) {
      // Looked up again each time: a missing part ends the plan.
      ActiveJob* job = FindPlan(plan_id);
      if (job == nullptr || i >= job->plan->parts().size()) break;
      PlanPart& part = job->plan->parts()[i];
      if (part.worker_id != worker_id) continue;
      const bool is_hosted =
          std::any_of(hello.hosted().begin(), hello.hosted().end(), [&](const v1::HostedPart& hosted) {
            return hosted.plan_id() == plan_id && job->plan->Find(worker_id, hosted) == &part;
          });
      if (is_hosted) {
        services_.registry->Assign(worker_id, part.id, part.memory_bytes);
        PartIsBack(job, i);
      } else if (!is_new && part.phase == PartPhase::kCommanded) {
        // The command was lost with the broken stream.
        services_.registry->Assign(worker_id, part.id, part.memory_bytes);
        services_.registry->Send(worker_id, job->plan->HostCommand(part));
      } else if (part.phase == PartPhase::kEnded) {
        continue;  // its failure is being looked into
      } else {
        const std::string message = absl::StrCat(services_.registry->Describe(worker_id), " came back without ",
                                                 PartName(part.id.is_side(), part.id.stage()));
        if (!part.id.is_side() && job->repair.has_value()) {
          continue;  // it is known
        } else if (!part.id.is_side() && job->is_recovering) {
          PartIsMissing(job, i);
        } else if (!part.id.is_side() && CanRepair(*job)) {
          BeginRepair(job, {}, message);
        } else if (job->is_recovering || CountLoss(job, message)) {
          Requeue(job, absl::StrCat(message, "; the job resumes from its newest checkpoint, if it has one"));
        }
      }
    }
  }
}

}  // namespace qst
