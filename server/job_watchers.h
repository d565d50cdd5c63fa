// Those who follow a job's events. Each asks for what comes after the last one it has, and is called once; so a slow
// watcher costs nothing but the store's pages.
#ifndef QST_SERVER_JOB_WATCHERS_H_
#define QST_SERVER_JOB_WATCHERS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/job_store/job_store.h"

namespace qst {

struct JobEventBatch {
  std::vector<v1::JobEvent> events;
  // The job is in a final state and these are its last events.
  bool is_over = false;
};

// Lives on the control loop.
class JobWatchers {
 public:
  using Callback = std::function<void(absl::StatusOr<JobEventBatch> batch)>;

  explicit JobWatchers(JobStore* store) : store_(store) {}

  // Calls back with the events after `after_sequence`, some hundred at most, as soon as there is one or the job is
  // over: now or later. Returns a handle for Forget, 0 if it has called back already. kNotFound: no such job.
  std::uint64_t Wait(const std::string& job_id, std::uint64_t after_sequence, Callback callback);
  void Forget(std::uint64_t handle) { waiters_.erase(handle); }

  // Calls all who wait with this error.
  void EndAll(const absl::Status& status);

  // The job has new events in the store.
  void Notify(const std::string& job_id);
  // Passes on an event that is not stored (its sequence is 0): only those who wait right now get it.
  void NotifyTransient(const std::string& job_id, const v1::JobEvent& event);

 private:
  struct Waiter {
    std::string job_id;
    std::uint64_t after_sequence;
    Callback callback;
  };
  std::vector<Waiter> Take(const std::string& job_id);

  JobStore* const store_;
  std::map<std::uint64_t, Waiter> waiters_;
  std::uint64_t next_handle_ = 1;
};

}  // namespace qst

#endif  // QST_SERVER_JOB_WATCHERS_H_
