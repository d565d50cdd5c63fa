#include "worker/host.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/plan_id.h"
#include "worker/host_generate_part.h"
#include "worker/host_stage_part.h"
#include "worker/host_task_runner.h"
#include "worker/host_train_part.h"
#include "worker/worker_memory.h"

namespace qst {
namespace {

bool IsSamePart(const v1::HostedPart& a, const v1::HostedPart& b) {
  return a.plan_id() == b.plan_id() && a.is_side() == b.is_side() && (a.is_side() || a.stage() == b.stage());
}

}  // namespace

std::unique_ptr<Part> MakePart(const v1::HostPart& command, const PartContext& context) {
  if (!command.is_side()) return MakeStagePart(command, context);
  if (command.has_generate()) return MakeGeneratePart(command, context);
  return MakeTrainPart(command, context);
}

Host::Host(PartContext context, PartFactory factory)
    : context_(std::move(context)),
      factory_(std::move(factory)),
      tasks_(context_.reports, MakeTaskRunner()),
      executor_([this] { RunExecutor(); }) {}

Host::~Host() {
  Shutdown(absl::CancelledError("the worker ends"));
  {
    absl::MutexLock lock(&mutex_);
    is_ending_ = true;
    changed_.SignalAll();
  }
  executor_.join();
  std::vector<std::string> plan_ids;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, plan] : plans_) plan_ids.push_back(id);
  }
  for (const std::string& id : plan_ids) EndPlan(id);
  std::list<std::unique_ptr<ModelImport>> imports;
  {
    absl::MutexLock lock(&mutex_);
    imports.swap(imports_);
  }
}

void Host::Post(std::function<void()> work) {
  absl::MutexLock lock(&mutex_);
  work_.push_back(std::move(work));
  changed_.SignalAll();
}

void Host::RunExecutor() {
  for (;;) {
    std::function<void()> work;
    {
      absl::MutexLock lock(&mutex_);
      while (work_.empty() && !is_ending_) changed_.Wait(&mutex_);
      if (is_ending_) return;
      work = std::move(work_.front());
      work_.pop_front();
    }
    work();
  }
}

void Host::Handle(const v1::WorkerCommand& command) {
  switch (command.kind_case()) {
    case v1::WorkerCommand::kHost:
      StartPart(command.host());
      break;
    case v1::WorkerCommand::kAttach:
      AttachStages(command.attach());
      break;
    case v1::WorkerCommand::kRelease:
      ReleasePlan(command.release().plan_id());
      break;
    case v1::WorkerCommand::kCancel: {
      absl::MutexLock lock(&mutex_);
      const auto it = plans_.find(command.cancel().plan_id());
      if (it == plans_.end()) break;
      for (HostedEntry& hosted : it->second.parts) {
        if (hosted.part != nullptr && hosted.id.is_side()) hosted.part->Cancel();
      }
      break;
    }
    case v1::WorkerCommand::kImport:
      StartImport(command.import());
      break;
    case v1::WorkerCommand::kCancelImport:
      CancelImport(command.cancel_import().name());
      break;
    case v1::WorkerCommand::kTask:
      tasks_.Start(command.task());
      break;
    case v1::WorkerCommand::kCancelTask:
      tasks_.Cancel(command.cancel_task().task_id());
      break;
    default:
      break;
  }
}

void Host::RefusePart(const v1::HostedPart& part, const absl::Status& status) {
  spdlog::error("{}", status.ToString());
  v1::PartReport report;
  *report.mutable_part() = part;
  report.set_state(v1::PART_STATE_FAILED);
  report.set_code(static_cast<std::int32_t>(status.code()));
  report.set_message(std::string(status.message()));
  context_.reports->AddPart(report);
}

void Host::StartPart(const v1::HostPart& command) {
  const v1::HostedPart id = HostedPartOf(command);
  const absl::Status checked = CheckPart(command);
  if (!checked.ok()) return RefusePart(id, checked);
  {
    absl::MutexLock lock(&mutex_);
    if (is_shut_down_) return;
    Plan& plan = plans_[id.plan_id()];
    for (const HostedEntry& hosted : plan.parts) {
      if (IsSamePart(hosted.id, id)) return;  // asked for again after a reconnection
    }
    if (plan.is_released) return;
    // Listed as hosted from now on.
    plan.parts.emplace_back();
    plan.parts.back().id = id;
  }
  Post([this, command] { BeginPart(command); });
}

void Host::BeginPart(const v1::HostPart& command) {
  const v1::HostedPart id = HostedPartOf(command);
  absl::MutexLock lock(&mutex_);
  const auto it = plans_.find(id.plan_id());
  if (it == plans_.end() || it->second.is_released || is_shut_down_) return;
  Plan& plan = it->second;
  PartContext context = context_;
  if (plan.hub == nullptr) {
    if (plans_.size() == 1) {
      ResetPeakMemory();
      context_.device->ResetPeak();
      context_.memory->SetBase(ReadProcessMemory().resident_bytes);
    }
    plan.hub = InprocHub::Create(RankNames(command.plan()));
  }
  context.hub = plan.hub;
  for (HostedEntry& hosted : plan.parts) {
    if (!IsSamePart(hosted.id, id)) continue;
    const bool allow_tf32 = command.is_side() && command.plan().side_tf32();
    absl::StatusOr<std::unique_ptr<ComputeContext>> compute = context_.device->NewContext(allow_tf32);
    if (!compute.ok()) return RefusePart(id, compute.status());
    spdlog::info("job {}: hosting {}", id.job_id(), PartName(id));
    hosted.compute = *std::move(compute);
    context.ops = hosted.compute->ops();
    hosted.part = factory_(command, context);
    hosted.thread = std::thread([part = hosted.part.get(), bound = hosted.compute.get()] {
      // A GPU that refuses this refuses the part's first op as well, and that is reported.
      bound->BindThread().IgnoreError();
      part->Run();
    });
  }
}

void Host::ReleasePlan(const std::string& plan_id) {
  {
    absl::MutexLock lock(&mutex_);
    const auto it = plans_.find(plan_id);
    if (it == plans_.end()) return;
    it->second.is_released = true;
    for (HostedEntry& hosted : it->second.parts) {
      if (hosted.part != nullptr) hosted.part->Abort(absl::CancelledError("the coordinator released the plan"));
    }
  }
  Post([this, plan_id] { EndPlan(plan_id); });
}

void Host::AttachStages(const v1::AttachStages& command) {
  v1::HostedPart id;
  id.set_job_id(command.plan().job_id());
  id.set_plan_id(command.plan().plan_id());
  id.set_is_side(true);
  const absl::Status checked = CheckPlan(command.plan());
  if (!checked.ok()) return RefusePart(id, checked);
  std::string old_plan_id;
  {
    absl::MutexLock lock(&mutex_);
    if (is_shut_down_) return;
    for (auto& [plan_id, plan] : plans_) {
      // Whatever its revision: an earlier command of this kind may have been lost with its session.
      if (plan.is_released || AttemptOf(plan_id) != AttemptOf(id.plan_id())) continue;
      const auto side = std::find_if(plan.parts.begin(), plan.parts.end(), [](const HostedEntry& hosted) {
        return hosted.id.is_side() && hosted.part != nullptr;
      });
      if (side == plan.parts.end()) continue;
      if (plan_id == id.plan_id()) return;  // asked for again after a reconnection
      // Listed under the new plan from now on. Nodes keep their place in memory: the part's thread runs on.
      old_plan_id = plan_id;
      context_.reports->ForgetPart(side->id);
      side->id = id;
      plan.is_released = true;
      std::list<HostedEntry>& next_parts = plans_[id.plan_id()].parts;
      next_parts.splice(next_parts.end(), plan.parts, side);
      for (HostedEntry& hosted : plan.parts) {
        if (hosted.part != nullptr) hosted.part->Abort(absl::CancelledError("the stages are placed again"));
      }
      break;
    }
  }
  if (old_plan_id.empty()) {
    return RefusePart(id,
                      absl::NotFoundError(absl::StrCat("plan ", command.plan_id(), ": no side network of it here")));
  }
  Post([this, old_plan_id] { EndPlan(old_plan_id); });
  Post([this, plan = command.plan()] { AttachSide(plan); });
}

void Host::AttachSide(const v1::JobPlan& job_plan) {
  absl::MutexLock lock(&mutex_);
  const auto it = plans_.find(job_plan.plan_id());
  if (it == plans_.end() || it->second.is_released || is_shut_down_) return;
  Plan& plan = it->second;
  if (plan.hub == nullptr) plan.hub = InprocHub::Create(RankNames(job_plan));
  for (HostedEntry& hosted : plan.parts) {
    if (hosted.id.is_side()) hosted.part->Attach(job_plan, plan.hub);
  }
}

void Host::EndPlan(const std::string& plan_id) {
  std::list<HostedEntry> parts;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = plans_.find(plan_id);
    if (it == plans_.end()) return;
    for (HostedEntry& hosted : it->second.parts) {
      if (hosted.part != nullptr) hosted.part->Abort(absl::CancelledError("the coordinator released the plan"));
      // The threads and parts leave the list, their names stay until they are gone.
      parts.push_back({hosted.id, std::move(hosted.compute), std::move(hosted.part), std::move(hosted.thread)});
    }
    it->second.hub.reset();
  }
  for (HostedEntry& hosted : parts) {
    if (hosted.thread.joinable()) hosted.thread.join();
  }
  for (HostedEntry& hosted : parts) hosted.part.reset();
  for (HostedEntry& hosted : parts) hosted.compute.reset();
  TrimMalloc();
  {
    absl::MutexLock lock(&mutex_);
    plans_.erase(plan_id);
  }
  for (const HostedEntry& hosted : parts) {
    if (hosted.id.is_side()) context_.reports->ForgetJob(AttemptOf(plan_id));
    spdlog::info("job {}: {} released", hosted.id.job_id(), PartName(hosted.id));
    v1::PartReport report;
    *report.mutable_part() = hosted.id;
    report.set_state(v1::PART_STATE_RELEASED);
    context_.reports->AddPart(report);
  }
}

void Host::StartImport(const v1::ImportCommand& command) {
  absl::MutexLock lock(&mutex_);
  if (is_shut_down_) return;
  imports_.remove_if([](const std::unique_ptr<ModelImport>& import) { return import->is_over(); });
  for (const std::unique_ptr<ModelImport>& import : imports_) {
    if (import->name() == command.name()) return;  // asked for again after a reconnection
  }
  // The outcome of an earlier import of this name is not that of this one.
  context_.reports->ForgetModel(command.name());
  imports_.push_back(std::make_unique<ModelImport>(command, context_.device->num_threads(), context_.reports));
}

void Host::CancelImport(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  for (const std::unique_ptr<ModelImport>& import : imports_) {
    if (import->name() != name) continue;
    import->Cancel();
    if (!import->is_over()) return;
  }
  context_.reports->ForgetModel(name);
}

std::vector<v1::HostedPart> Host::Hosted() const {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::HostedPart> hosted;
  for (const auto& [id, plan] : plans_) {
    for (const HostedEntry& part : plan.parts) hosted.push_back(part.id);
  }
  return hosted;
}

void Host::Shutdown(const absl::Status& reason) {
  absl::MutexLock lock(&mutex_);
  is_shut_down_ = true;
  for (auto& [id, plan] : plans_) {
    for (HostedEntry& hosted : plan.parts) {
      if (hosted.part != nullptr) hosted.part->Abort(reason);
    }
  }
  for (const std::unique_ptr<ModelImport>& import : imports_) import->Cancel();
  tasks_.Shutdown();
}

}  // namespace qst
