#include "worker/worker_reports.h"

#include <utility>

#include "absl/time/clock.h"

namespace qst {

void WorkerReports::AddPart(const v1::PartReport& report) {
  const v1::HostedPart& part = report.part();
  absl::MutexLock lock(&mutex_);
  PartEntry& entry = parts_[PartKey(part.plan_id(), part.is_side(), part.stage())];
  entry.report = report;
  entry.is_sent = false;
  changed_.SignalAll();
}

void WorkerReports::ForgetPart(const v1::HostedPart& part) {
  absl::MutexLock lock(&mutex_);
  parts_.erase(PartKey(part.plan_id(), part.is_side(), part.stage()));
  changed_.SignalAll();
}

void WorkerReports::AddJob(v1::JobReport report) {
  report.set_time_ms(absl::ToUnixMillis(absl::Now()));
  absl::MutexLock lock(&mutex_);
  Plan& plan = plans_[report.plan_id()];
  if (!is_open_ && report.has_progress() && !plan.unacknowledged.empty()) {
    const std::uint64_t first = plan.unacknowledged.front().report_sequence();
    if (plan.progress_sequence >= first + plan.num_sent) {
      report.set_report_sequence(plan.progress_sequence);
      plan.unacknowledged[plan.progress_sequence - first] = std::move(report);
      return;
    }
  }
  report.set_report_sequence(++plan.last_sequence);
  if (report.has_progress()) plan.progress_sequence = report.report_sequence();
  plan.unacknowledged.push_back(std::move(report));
  changed_.SignalAll();
}

void WorkerReports::AddModel(const v1::ModelReport& report) {
  absl::MutexLock lock(&mutex_);
  models_[report.model().name()] = {report, false};
  changed_.SignalAll();
}

void WorkerReports::AddGenerate(const v1::GenerateReport& report) {
  absl::MutexLock lock(&mutex_);
  generates_.push_back(report);
  changed_.SignalAll();
}

void WorkerReports::AddTask(const v1::TaskReport& report) {
  absl::MutexLock lock(&mutex_);
  tasks_[report.task_id()] = {report, false};
  changed_.SignalAll();
}

void WorkerReports::AcknowledgeJob(absl::string_view plan_id, std::uint64_t sequence) {
  absl::MutexLock lock(&mutex_);
  const auto it = plans_.find(plan_id);
  if (it == plans_.end()) return;
  Plan& plan = it->second;
  while (!plan.unacknowledged.empty() && plan.unacknowledged.front().report_sequence() <= sequence) {
    plan.unacknowledged.pop_front();
    if (plan.num_sent > 0) --plan.num_sent;
  }
  changed_.SignalAll();
}

void WorkerReports::ForgetJob(absl::string_view plan_id) {
  absl::MutexLock lock(&mutex_);
  const auto it = plans_.find(plan_id);
  if (it != plans_.end()) plans_.erase(it);
  changed_.SignalAll();
}

void WorkerReports::ForgetModel(absl::string_view name) {
  absl::MutexLock lock(&mutex_);
  const auto it = models_.find(name);
  if (it != models_.end()) models_.erase(it);
  changed_.SignalAll();
}

void WorkerReports::ForgetTask(absl::string_view task_id) {
  absl::MutexLock lock(&mutex_);
  const auto it = tasks_.find(task_id);
  if (it != tasks_.end()) tasks_.erase(it);
  changed_.SignalAll();
}

void WorkerReports::BeginSession() {
  absl::MutexLock lock(&mutex_);
  is_open_ = true;
  for (auto& [key, part] : parts_) part.is_sent = false;
  for (auto& [id, plan] : plans_) plan.num_sent = 0;
  for (auto& [name, model] : models_) model.is_sent = false;
  for (auto& [id, task] : tasks_) task.is_sent = false;
  changed_.SignalAll();
}

bool WorkerReports::HasNext() const {
  if (!generates_.empty()) return true;
  for (const auto& [key, entry] : parts_) {
    if (!entry.is_sent) return true;
  }
  for (const auto& [id, plan] : plans_) {
    if (plan.num_sent < plan.unacknowledged.size()) return true;
  }
  for (const auto& [name, entry] : models_) {
    if (!entry.is_sent) return true;
  }
  for (const auto& [id, entry] : tasks_) {
    if (!entry.is_sent) return true;
  }
  return false;
}

std::optional<v1::WorkerReport> WorkerReports::Take(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  while (is_open_ && !HasNext()) {
    if (changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline) return std::nullopt;
  }
  if (!is_open_) return std::nullopt;
  v1::WorkerReport report;
  for (auto it = parts_.begin(); it != parts_.end(); ++it) {
    PartEntry& entry = it->second;
    if (entry.is_sent) continue;
    *report.mutable_part() = entry.report;
    entry.is_sent = true;
    // Told once: should it get lost, the next hello no longer lists the part.
    if (entry.report.state() == v1::PART_STATE_RELEASED) parts_.erase(it);
    changed_.SignalAll();
    return report;
  }
  for (auto& [id, plan] : plans_) {
    if (plan.num_sent == plan.unacknowledged.size()) continue;
    *report.mutable_job() = plan.unacknowledged[plan.num_sent++];
    changed_.SignalAll();
    return report;
  }
  if (!generates_.empty()) {
    *report.mutable_generate() = std::move(generates_.front());
    generates_.pop_front();
    changed_.SignalAll();
    return report;
  }
  for (auto& [name, entry] : models_) {
    if (entry.is_sent) continue;
    *report.mutable_model() = entry.report;
    entry.is_sent = true;
    changed_.SignalAll();
    return report;
  }
  for (auto& [id, entry] : tasks_) {
    if (entry.is_sent) continue;
    *report.mutable_task() = entry.report;
    entry.is_sent = true;
    changed_.SignalAll();
    return report;
  }
  return std::nullopt;
}

void WorkerReports::EndSession() {
  absl::MutexLock lock(&mutex_);
  is_open_ = false;
  changed_.SignalAll();
}

bool WorkerReports::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  while (HasNext()) {
    if (changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline) return false;
  }
  return true;
}

}  // namespace qst
