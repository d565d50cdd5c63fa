#include "server/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/placement.h"

namespace qst {

void CopyPlacement(const v1::Placement& placement, v1::JobPlan* plan) {
  *plan->mutable_stages() = placement.stages();
  plan->set_side_worker_id(placement.side_worker_id());
  plan->set_data_plane(placement.data_plane());
  plan->set_side_memory_bytes(placement.side_memory_bytes());
}

std::string PlanId(const v1::Job& job) {
  const std::uint32_t revision = job.placement().revision();
  return absl::StrCat(job.id(), "/", job.attempt(), revision > 0 ? absl::StrCat(".", revision) : "");
}

Plan::Plan(v1::JobPlan plan, v1::HostPart side_work, std::string attached_from)
    : plan_(std::move(plan)), side_work_(std::move(side_work)), attached_from_(std::move(attached_from)) {
  for (const v1::PlacedStage& stage : plan_.stages()) {
    PlanPart& part = parts_.emplace_back();
    part.id.set_stage(stage.stage());
    part.worker_id = stage.worker_id();
    part.memory_bytes = stage.memory_bytes();
  }
  PlanPart& side = parts_.emplace_back();
  side.id.set_is_side(true);
  side.worker_id = plan_.side_worker_id();
  side.memory_bytes = plan_.side_memory_bytes();
  for (PlanPart& part : parts_) {
    part.id.set_job_id(plan_.job_id());
    part.id.set_plan_id(plan_.plan_id());
  }
}

PlanPart* Plan::Find(const std::string& worker_id, const v1::HostedPart& part) {
  for (PlanPart& known : parts_) {
    if (known.worker_id == worker_id && known.id.is_side() == part.is_side() &&
        (part.is_side() || known.id.stage() == part.stage())) {
      return &known;
    }
  }
  return nullptr;
}

v1::WorkerCommand Plan::HostCommand(const PlanPart& part) const {
  v1::WorkerCommand command;
  if (part.id.is_side() && !attached_from_.empty()) {
    command.mutable_attach()->set_plan_id(attached_from_);
    *command.mutable_attach()->mutable_plan() = plan_;
    return command;
  }
  v1::HostPart* host = command.mutable_host();
  if (part.id.is_side()) {
    *host = side_work_;
    host->set_is_side(true);
  } else {
    host->set_stage(part.id.stage());
  }
  *host->mutable_plan() = plan_;
  return command;
}

std::string Plan::PartsOf(const std::string& worker_id) const {
  std::string names;
  for (const PlanPart& part : parts_) {
    if (part.worker_id != worker_id) continue;
    absl::StrAppend(&names, names.empty() ? "" : ", ", PartName(part.id.is_side(), part.id.stage()));
  }
  return names;
}

int Plan::NumReady() const {
  return static_cast<int>(std::count_if(parts_.begin(), parts_.end(),
                                        [](const PlanPart& part) { return part.phase == PartPhase::kReady; }));
}

void Plan::Start(WorkerRegistry* registry) const {
  for (const PlanPart& part : parts_) registry->Assign(part.worker_id, part.id, part.memory_bytes);
  // A side network that is there goes first: it takes its worker along to this plan.
  for (const PlanPart& part : parts_) {
    if (part.id.is_side() && !attached_from_.empty()) registry->Send(part.worker_id, HostCommand(part));
  }
  for (const PlanPart& part : parts_) {
    if (!part.id.is_side() || attached_from_.empty()) registry->Send(part.worker_id, HostCommand(part));
  }
}

std::string Plan::AwayWorker(const WorkerRegistry& registry) const {
  const std::set<std::string> away = AwayWorkers(registry);
  return away.empty() ? "" : *away.begin();
}

std::set<std::string> Plan::AwayWorkers(const WorkerRegistry& registry) const {
  std::set<std::string> away;
  for (const PlanPart& part : parts_) {
    if (registry.IsAway(part.worker_id)) away.insert(part.worker_id);
  }
  return away;
}

}  // namespace qst
