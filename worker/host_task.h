// Short tasks on this worker, beside whatever it hosts.
#ifndef QST_WORKER_HOST_TASK_H_
#define QST_WORKER_HOST_TASK_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "proto/qst/v1/control.pb.h"
#include "worker/worker_reports.h"

namespace qst {

// What a task may ask and say while it runs. Thread-safe.
struct TaskContext {
  const std::atomic<bool>& is_cancelled;
  // Passed on a few times a second at most.
  std::function<void(const v1::TaskProgress& progress)> on_progress;
};

// Does one task, on a thread of its own: returns the report that ends it (its id is filled in), or the error. May be
// called for several tasks at a time.
using TaskRunner =
    std::function<absl::StatusOr<v1::TaskReport>(const v1::TaskCommand& command, const TaskContext& context)>;

// Runs up to kMaxRunning tasks at a time, a thread each; more wait in the order of their commands, and beyond
// kMaxWaiting are refused. A task reports progress and then its outcome, which is repeated in every new session until
// the coordinator has it. Start, Cancel and Shutdown never block. Thread-safe.
class HostTasks {
 public:
  static constexpr int kMaxRunning = 4;
  static constexpr int kMaxWaiting = 256;

  // `reports` must outlive this.
  HostTasks(WorkerReports* reports, TaskRunner runner);
  // Cancels all and waits for them.
  ~HostTasks();
  HostTasks(const HostTasks&) = delete;
  HostTasks& operator=(const HostTasks&) = delete;

  // A task that is known already is not begun again.
  void Start(const v1::TaskCommand& command) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a task soon, with CANCELLED, or forgets its outcome if it is over.
  void Cancel(const std::string& task_id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Cancels all; nothing new is taken.
  void Shutdown() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    v1::TaskCommand command;
    std::atomic<bool> is_cancelled{false};
    bool is_started = false;
    bool is_over = false;
    // The coordinator does not wait for it any more.
    bool is_forgotten = false;
    std::thread thread;
  };

  void StartWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes entries off the list whose outcome nobody needs, into `gone`, to be joined without the lock.
  void Collect(std::list<Entry>* gone) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(Entry* entry) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReportError(const std::string& task_id, const absl::Status& status);

  WorkerReports* const reports_;
  const TaskRunner runner_;
  absl::Mutex mutex_;
  bool is_shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  int num_running_ ABSL_GUARDED_BY(mutex_) = 0;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_HOST_TASK_H_
