#include "server/coordinator.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "server/log.h"

namespace qst {

Coordinator::Coordinator(Executor* executor, JobStore* store, const StoreLayout& layout,
                         const CoordinatorOptions& options)
    : executor_(executor),
      layout_(layout),
      options_(options),
      registry_(executor, options.registry),
      datasets_(executor, store, layout),
      models_(executor, store, &registry_, layout, options.jobs.recover_grace),
      jobs_(JobManager::Services{executor, store, &registry_, &rendezvous_, &models_, &datasets_}, layout,
            options.jobs),
      generations_(executor, store, &registry_, &rendezvous_, &models_, layout),
      tasks_(executor, &registry_, &models_, &datasets_, layout) {
  models_.SetInUse([this](const std::string& name) {
    return jobs_.UsesModel(name) || generations_.UsesModel(name) || tasks_.UsesModel(name);
  });
  datasets_.SetInUse([this](const std::string& id) { return jobs_.UsesDataset(id) || tasks_.UsesDataset(id); });
  WorkerRegistry::Events events;
  events.on_change = [this] { ScheduleSoon(); };
  events.on_lost = [this](const std::string& worker_id, const std::string& plan_id, const std::string& model,
                          const std::string& reason) {
    if (!plan_id.empty()) {
      jobs_.OnWorkerLost(worker_id, plan_id, reason);
      generations_.OnWorkerLost(worker_id, plan_id, reason);
    }
    if (!model.empty()) models_.OnWorkerLost(worker_id, model, reason);
    tasks_.OnWorkerLost(worker_id, reason);
  };
  registry_.SetEvents(std::move(events));
}

absl::Status Coordinator::Start() {
  QST_RETURN_IF_ERROR(models_.Recover());
  QST_RETURN_IF_ERROR(jobs_.Recover());
  ScheduleSoon();
  // Jobs that take what is there wait until the workers had time to register.
  executor_->PostAfter(options_.jobs.settle, [this] { ScheduleSoon(); });
  executor_->PostAfter(options_.tick, [this] { Tick(); });
  return absl::OkStatus();
}

void Coordinator::Tick() {
  registry_.Tick();
  executor_->PostAfter(options_.tick, [this] { Tick(); });
}

void Coordinator::ScheduleSoon() {
  if (is_scheduled_) return;
  is_scheduled_ = true;
  executor_->Post([this] {
    is_scheduled_ = false;
    if (is_draining_) return;
    // Short work with someone waiting for it goes first.
    tasks_.Schedule();
    models_.Schedule();
    generations_.Schedule();
    jobs_.Schedule();
  });
}

absl::Status Coordinator::OnHello(const v1::Hello& hello, std::shared_ptr<WorkerLink> link) {
  QST_RETURN_IF_ERROR(CheckAccepting());
  if (CanonicalPath(hello.store_path()) != layout_.root()) {
    return absl::FailedPreconditionError(absl::StrCat("worker ", hello.worker_id(), " uses the store '",
                                                      hello.store_path(), "', the coordinator '", layout_.root(),
                                                      "': start both with the same --store"));
  }
  QST_ASSIGN_OR_RETURN(const WorkerRegistry::HelloKind kind, registry_.Connect(hello, std::move(link)));
  const bool is_new = kind == WorkerRegistry::HelloKind::kNew;
  models_.OnWorkerConnected(hello.worker_id(), is_new);
  jobs_.OnHello(hello, is_new);
  generations_.OnHello(hello);
  if (!is_new) tasks_.OnWorkerReturned(hello.worker_id());
  for (const v1::HostedPart& part : hello.hosted()) {
    if (jobs_.OwnsPart(part) || generations_.OwnsPlan(part.plan_id())) continue;
    registry_.ReleaseUnknown(hello.worker_id(), part);
  }
  ScheduleSoon();
  return absl::OkStatus();
}

void Coordinator::OnReport(const std::string& worker_id, const WorkerLink* link, const v1::WorkerReport& report) {
  // What comes late through a session that was replaced is sent again in the new one.
  if (!registry_.Touch(worker_id, link)) return;
  switch (report.kind_case()) {
    case v1::WorkerReport::kHeartbeat:
      registry_.SetMemory(worker_id, report.heartbeat());
      break;
    case v1::WorkerReport::kPart: {
      const v1::PartReport& part = report.part();
      const bool has_ended = part.state() == v1::PART_STATE_RELEASED || part.state() == v1::PART_STATE_FAILED;
      if (has_ended) registry_.PartEnded(worker_id, part.part());
      jobs_.OnPartReport(worker_id, part);
      generations_.OnPartReport(worker_id, part);
      break;
    }
    case v1::WorkerReport::kJob:
      jobs_.OnJobReport(worker_id, report.job());
      break;
    case v1::WorkerReport::kModel:
      models_.OnReport(worker_id, report.model());
      break;
    case v1::WorkerReport::kGenerate:
      generations_.OnReport(worker_id, report.generate());
      break;
    case v1::WorkerReport::kTask:
      tasks_.OnReport(worker_id, report.task());
      break;
    case v1::WorkerReport::kHello:
    default:
      LogWarning(absl::StrCat(registry_.Describe(worker_id), " sent a message that does not belong here"));
  }
}

void Coordinator::OnSessionEnded(const std::string& worker_id, const WorkerLink* link) {
  registry_.Disconnect(worker_id, link);
}

void Coordinator::BeginDrain() {
  is_draining_ = true;
  const absl::Status reason = absl::UnavailableError("the coordinator is shutting down; try again later");
  jobs_.watchers()->EndAll(reason);
  models_.EndWaits(reason);
  generations_.EndAll(reason);
  tasks_.EndAll(reason);
  rendezvous_.EndWaits(reason);
  registry_.CloseAll(reason);
}

absl::Status Coordinator::CheckAccepting() const {
  if (is_draining_) return absl::UnavailableError("the coordinator is shutting down; try again later");
  return absl::OkStatus();
}

}  // namespace qst
