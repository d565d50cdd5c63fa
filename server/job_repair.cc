// How a running job survives the loss of its stages. They hold nothing that is learned, so others can take their place
// while the side network waits:
//
//   a stage's worker is lost, a stage or the side network says that a peer is gone
//     ──▶ repair: a new placement with the same layers for each stage, stored as the job's next revision
//     ──▶ the old plan is released, all stages are hosted anew, the side network attaches to them (AttachStages)
//     ──▶ it asks again for the passes that were in flight, and goes on
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/job_manager.h"
#include "server/job_state.h"
#include "server/log.h"
#include "server/stage_replacement.h"

namespace qst {

bool JobManager::CanRepair(const ActiveJob& job) const {
  const v1::JobState state = job.record.job.state();
  return job.plan.has_value() && !job.is_recovering && !job.record.cancel_requested && !job.held_failure.has_value() &&
         (state == v1::JOB_STATE_RUNNING || state == v1::JOB_STATE_EVALUATING);
}

bool JobManager::OwnsPart(const v1::HostedPart& part) const {
  if (FindPlan(part.plan_id()) != nullptr) return true;
  // A side network that was not told yet that it belongs to another revision now.
  return part.is_side() && FindAttempt(part.plan_id()) != nullptr;
}

// False: there were too many without a step between them, and the job has failed.
bool JobManager::CountLoss(ActiveJob* job, const std::string& message) {
  const std::uint64_t step = job->record.job.progress().step();
  if (step != job->step_of_last_loss) job->losses_without_step = 0;
  job->step_of_last_loss = step;
  if (++job->losses_without_step <= options_.max_losses_without_step) return true;
  End(job, v1::JOB_STATE_FAILED,
      absl::StrCat(message, "; given up after ", job->losses_without_step,
                   " losses without a step done between them: the workers' logs may say why they end"));
  return false;
}

void JobManager::SuspectLoss(ActiveJob* job, const std::string& message) {
  if (job->repair.has_value() || job->is_loss_suspected) return;
  const auto look = [this, message](ActiveJob* suspected, bool is_certain) {
    const std::set<std::string> away = suspected->plan->AwayWorkers(*services_.registry);
    // With the side network's worker there is nothing to repair; it comes back or is lost.
    if (away.count(suspected->plan->side_worker_id()) > 0) return true;
    if (away.empty() && !is_certain) return false;
    BeginRepair(suspected, away, away.empty() ? message : LostMessage(*suspected, *away.begin(), "connection closed"));
    return true;
  };
  if (look(job, /*is_certain=*/false)) return;
  // The end of its session may not have been noticed yet.
  job->is_loss_suspected = true;
  services_.executor->PostAfter(options_.failure_hold, [this, look, plan_id = job->plan->id()] {
    ActiveJob* suspected = FindPlan(plan_id);
    if (suspected == nullptr || !suspected->is_loss_suspected) return;
    suspected->is_loss_suspected = false;
    if (!suspected->repair.has_value() && CanRepair(*suspected)) look(suspected, /*is_certain=*/true);
  });
}

void JobManager::BeginRepair(ActiveJob* job, std::set<std::string> gone, const std::string& message) {
  job->is_loss_suspected = false;
  if (job->repair.has_value()) {
    job->repair->gone.insert(gone.begin(), gone.end());
  } else {
    if (!CountLoss(job, message)) return;
    job->repair.emplace();
    job->repair->gone = std::move(gone);
    job->repair->since = services_.executor->Now();
    services_.executor->PostAfter(options_.share_after, [this] { RepairAll(); });
  }
  LogWarning(absl::StrCat("job ", job->id(), ": ", message, "; its stages are placed again"));
  SetStatus(job, absl::StrCat(message, "; its stages are placed again, no step is lost"));
  TryRepair(job);
}

void JobManager::RepairAll() {
  std::vector<std::string> ids;
  for (const auto& [id, job] : active_) {
    if (job->repair.has_value()) ids.push_back(id);
  }
  for (const std::string& id : ids) {
    if (ActiveJob* job = Find(id); job != nullptr && job->repair.has_value()) TryRepair(job);
  }
}

bool JobManager::TryRepair(ActiveJob* job) {
  if (!CanRepair(*job)) return false;
  const std::string side_worker_id = job->plan->side_worker_id();
  std::set<std::string> away = job->plan->AwayWorkers(*services_.registry);
  if (away.count(side_worker_id) > 0) return false;
  ReplacementRequest request;
  request.placement = job->record.job.placement();
  request.gone = job->repair->gone;
  request.gone.merge(away);
  request.may_share = services_.executor->Now() - job->repair->since >= options_.share_after;
  const PlacementDecision decision = ReplaceStages(request, services_.registry->Offers());
  if (!decision.is_placed) {
    SetStatus(job, decision.message);
    return false;
  }
  const JobRecord before = job->record;
  *job->record.job.mutable_placement() = decision.placement;
  job->record.job.set_status_message(decision.message);
  v1::JobEvent event = NewEvent(job);
  event.set_message(decision.message);
  if (!Save(job, {event}, Durability::kSynced).ok()) {
    job->record = before;
    services_.executor->PostAfter(absl::Seconds(1), [this] { RepairAll(); });
    return false;
  }
  const std::string old_plan_id = job->plan->id();
  Plan next = BuildPlan(job->record.job, job->record.job.spec().model(), old_plan_id);
  LogInfo(absl::StrCat("job ", job->id(), ": ", decision.message, "; plan ", next.id(), " takes the place of ",
                       old_plan_id));
  services_.rendezvous->Open(next.id());
  services_.rendezvous->Close(old_plan_id);
  job->plan.emplace(std::move(next));
  job->reattaching_since = job->repair->since;
  job->repair.reset();
  // Their workers are told first to drop the old parts; the side network's is told by AttachStages.
  services_.registry->ReleasePlan(old_plan_id, side_worker_id);
  job->plan->Start(services_.registry);
  return true;
}

void JobManager::SideIsAttached(ActiveJob* job) {
  const absl::Duration took = services_.executor->Now() - *job->reattaching_since;
  job->reattaching_since.reset();
  SetStatus(job,
            absl::StrCat("its stages are back after ", absl::FormatDuration(absl::Trunc(took, absl::Milliseconds(100))),
                         "; it goes on where it was"));
}

void JobManager::PartIsBack(ActiveJob* job, std::size_t part_index) {
  if (!job->is_recovering) return;
  job->parts_back[part_index] = true;
  job->plan->parts()[part_index].phase = PartPhase::kReady;
  EndRecovery(job, /*is_last_chance=*/false);
}

void JobManager::PartIsMissing(ActiveJob* job, std::size_t part_index) {
  job->parts_missing[part_index] = true;
  EndRecovery(job, /*is_last_chance=*/false);
}

// After a restart of the coordinator, once it is clear what became of the parts.
void JobManager::EndRecovery(ActiveJob* job, bool is_last_chance) {
  std::set<std::string> gone;
  bool is_whole = true;
  bool has_side = false;
  for (std::size_t i = 0; i < job->parts_back.size(); ++i) {
    const PlanPart& part = job->plan->parts()[i];
    if (job->parts_back[i]) {
      has_side = has_side || part.id.is_side();
      continue;
    }
    is_whole = false;
    if (!job->parts_missing[i] && !is_last_chance) return;  // it may come yet
    if (services_.registry->IsAway(part.worker_id)) gone.insert(part.worker_id);
  }
  if (!has_side) {
    if (!is_last_chance) return;
    Requeue(job,
            "the coordinator restarted and not all workers of the job came back; it resumes from its newest "
            "checkpoint, if it has one");
    return;
  }
  job->is_recovering = false;
  if (!is_whole) {
    BeginRepair(job, std::move(gone), "the coordinator restarted and not all stages of the job came back");
    return;
  }
  LogInfo(absl::StrCat("job ", job->id(), ": all its workers are back; it goes on"));
  AddMessage(job, "the coordinator restarted; all workers of the job came back and it goes on");
}

}  // namespace qst
