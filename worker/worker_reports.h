// What a worker has to tell the coordinator, kept until it has been told.
#ifndef QST_WORKER_WORKER_REPORTS_H_
#define QST_WORKER_WORKER_REPORTS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.pb.h"

namespace qst {

// Parts, imports and tasks add reports from any thread; the session takes them in order and sends them. When a session
// breaks, the next one begins with what may have been lost: the newest state of every part, import and task, and all
// job reports that were not acknowledged.
//
// Job reports of an attempt (a plan and its revisions) are numbered from 1 without gaps. While no session is open, a
// progress report takes the place of the one before it, so that a long absence of the coordinator costs no memory.
class WorkerReports {
 public:
  // The newest state of a part replaces the one before.
  void AddPart(const v1::PartReport& report) ABSL_LOCKS_EXCLUDED(mutex_);
  // The part has another name from now on: what it was is of no interest.
  void ForgetPart(const v1::HostedPart& part) ABSL_LOCKS_EXCLUDED(mutex_);
  // Fills in report_sequence and time_ms.
  void AddJob(v1::JobReport report) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddModel(const v1::ModelReport& report) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddGenerate(const v1::GenerateReport& report) ABSL_LOCKS_EXCLUDED(mutex_);
  // The newest report of a task replaces the one before.
  void AddTask(const v1::TaskReport& report) ABSL_LOCKS_EXCLUDED(mutex_);

  // Job reports up to `sequence` are stored.
  void AcknowledgeJob(absl::string_view plan_id, std::uint64_t sequence) ABSL_LOCKS_EXCLUDED(mutex_);
  // The coordinator is done with a plan: its job reports need not be sent any more.
  void ForgetJob(absl::string_view plan_id) ABSL_LOCKS_EXCLUDED(mutex_);
  // The import is over and the coordinator knows.
  void ForgetModel(absl::string_view name) ABSL_LOCKS_EXCLUDED(mutex_);

  // The coordinator has the task's outcome, or wants none.
  void ForgetTask(absl::string_view task_id) ABSL_LOCKS_EXCLUDED(mutex_);

  // A session begins: everything that may not have arrived is to be sent (again).
  void BeginSession() ABSL_LOCKS_EXCLUDED(mutex_);
  // The next report to send, waiting for one until `deadline`; nothing after that or after Wake.
  std::optional<v1::WorkerReport> Take(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // The session is over: Take returns at once until the next BeginSession.
  void EndSession() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until everything was handed to an open session, or until `deadline`; whether it was.
  bool Drain(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using PartKey = std::tuple<std::string, bool, std::uint32_t>;  // plan, is side, stage
  struct Plan {
    std::uint64_t last_sequence = 0;
    std::deque<v1::JobReport> unacknowledged;
    // Reports of `unacknowledged` that this session was handed.
    std::size_t num_sent = 0;
    std::uint64_t progress_sequence = 0;  // of the newest progress report; 0 = none
  };
  struct PartEntry {
    v1::PartReport report;
    bool is_sent = false;
  };
  struct ModelEntry {
    v1::ModelReport report;
    bool is_sent = false;
  };

  struct TaskEntry {
    v1::TaskReport report;
    bool is_sent = false;
  };

  bool HasNext() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  absl::CondVar changed_;
  bool is_open_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<PartKey, PartEntry> parts_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Plan, std::less<>> plans_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, ModelEntry, std::less<>> models_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::GenerateReport> generates_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, TaskEntry, std::less<>> tasks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_WORKER_REPORTS_H_
