// A few threads for file work, so that neither gRPC's threads nor the control loop wait for a disk.
#ifndef QST_SERVER_TASK_POOL_H_
#define QST_SERVER_TASK_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace qst {

// Thread-safe. Tasks run in no particular order; each must be short (one piece of a file).
class TaskPool {
 public:
  explicit TaskPool(int num_threads);
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // False, and the task is dropped, after Stop.
  bool Post(std::function<void()> task);
  // Runs what was posted before, then joins. Idempotent.
  void Stop();

 private:
  void Run();

  absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace qst

#endif  // QST_SERVER_TASK_POOL_H_
