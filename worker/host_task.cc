#include "worker/host_task.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace qst {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(250);

}  // namespace

HostTasks::HostTasks(WorkerReports* reports, TaskRunner runner) : reports_(reports), runner_(std::move(runner)) {}

HostTasks::~HostTasks() {
  Shutdown();
  std::list<Entry> gone;
  {
    absl::MutexLock lock(&mutex_);
    gone.swap(entries_);
  }
  for (Entry& entry : gone) {
    if (entry.thread.joinable()) entry.thread.join();
  }
}

void HostTasks::ReportError(const std::string& task_id, const absl::Status& status) {
  v1::TaskReport report;
  report.set_task_id(task_id);
  report.mutable_error()->set_code(static_cast<std::int32_t>(status.code()));
  report.mutable_error()->set_message(std::string(status.message()));
  reports_->AddTask(report);
}

void HostTasks::Start(const v1::TaskCommand& command) {
  std::list<Entry> gone;
  bool is_refused = false;
  {
    absl::MutexLock lock(&mutex_);
    Collect(&gone);
    for (const Entry& entry : entries_) {
      if (entry.command.task_id() == command.task_id()) return;  // asked for again after a reconnection
    }
    is_refused = is_shut_down_ || static_cast<int>(entries_.size()) >= kMaxRunning + kMaxWaiting;
    if (!is_refused) {
      entries_.emplace_back();
      entries_.back().command = command;
      StartWaiting();
    }
  }
  if (is_refused) {
    ReportError(command.task_id(), absl::ResourceExhaustedError("the worker has too much to do; try again later"));
  }
  for (Entry& entry : gone) {
    if (entry.thread.joinable()) entry.thread.join();
  }
}

void HostTasks::StartWaiting() {
  for (Entry& entry : entries_) {
    if (num_running_ >= kMaxRunning || is_shut_down_) return;
    if (entry.is_started) continue;
    entry.is_started = true;
    ++num_running_;
    entry.thread = std::thread([this, entry = &entry] { Run(entry); });
  }
}

void HostTasks::Collect(std::list<Entry>* gone) {
  for (auto it = entries_.begin(); it != entries_.end();) {
    const auto next = std::next(it);
    if (it->is_over && it->is_forgotten) gone->splice(gone->end(), entries_, it);
    it = next;
  }
}

void HostTasks::Run(Entry* entry) {
  const std::string& id = entry->command.task_id();
  absl::Time next_report = absl::InfinitePast();
  const TaskContext context{entry->is_cancelled, [this, &id, &next_report](const v1::TaskProgress& progress) {
                              if (absl::Now() < next_report) return;
                              next_report = absl::Now() + kProgressInterval;
                              v1::TaskReport report;
                              report.set_task_id(id);
                              *report.mutable_progress() = progress;
                              reports_->AddTask(report);
                            }};
  spdlog::info("task {}: begins", id);
  absl::StatusOr<v1::TaskReport> outcome = absl::CancelledError("the task was cancelled");
  if (!entry->is_cancelled) outcome = runner_(entry->command, context);
  spdlog::info("task {}: {}", id, outcome.ok() ? "done" : outcome.status().ToString());
  absl::MutexLock lock(&mutex_);
  // Under the lock: a Cancel from now on finds a task that is over, and its report.
  if (outcome.ok()) {
    outcome->set_task_id(id);
    reports_->AddTask(*outcome);
  } else {
    ReportError(id, outcome.status());
  }
  entry->is_over = true;
  --num_running_;
  StartWaiting();
}

void HostTasks::Cancel(const std::string& task_id) {
  absl::MutexLock lock(&mutex_);
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->command.task_id() != task_id) continue;
    it->is_cancelled = true;
    // A task that runs still says at its end that it was cancelled; the coordinator then takes notice once more.
    it->is_forgotten = it->is_over;
    if (!it->is_started) {
      entries_.erase(it);
      ReportError(task_id, absl::CancelledError("the task was cancelled"));
      return;
    }
    break;
  }
  reports_->ForgetTask(task_id);
}

void HostTasks::Shutdown() {
  absl::MutexLock lock(&mutex_);
  is_shut_down_ = true;
  for (Entry& entry : entries_) entry.is_cancelled = true;
}

}  // namespace qst
