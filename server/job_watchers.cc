#include "server/job_watchers.h"

#include <utility>

#include "server/job_state.h"

namespace qst {
namespace {

constexpr std::uint32_t kEventsPerBatch = 256;

}  // namespace

std::uint64_t JobWatchers::Wait(const std::string& job_id, std::uint64_t after_sequence, Callback callback) {
  const absl::StatusOr<JobRecord> record = store_->GetJob(job_id);
  if (!record.ok()) {
    callback(record.status());
    return 0;
  }
  const bool is_final = IsFinalJobState(record->job.state());
  if (record->last_sequence > after_sequence || is_final) {
    absl::StatusOr<std::vector<v1::JobEvent>> events = store_->ListEvents(job_id, after_sequence, kEventsPerBatch);
    if (!events.ok()) {
      callback(events.status());
      return 0;
    }
    JobEventBatch batch;
    batch.is_over = is_final && (events->empty() || events->back().sequence() >= record->last_sequence);
    batch.events = *std::move(events);
    callback(std::move(batch));
    return 0;
  }
  const std::uint64_t handle = next_handle_++;
  waiters_.emplace(handle, Waiter{job_id, after_sequence, std::move(callback)});
  return handle;
}

std::vector<JobWatchers::Waiter> JobWatchers::Take(const std::string& job_id) {
  std::vector<Waiter> taken;
  for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
    if (waiter->second.job_id == job_id) {
      taken.push_back(std::move(waiter->second));
      waiter = waiters_.erase(waiter);
    } else {
      ++waiter;
    }
  }
  return taken;
}

void JobWatchers::EndAll(const absl::Status& status) {
  for (auto& [handle, waiter] : std::exchange(waiters_, {})) waiter.callback(status);
}

void JobWatchers::Notify(const std::string& job_id) {
  for (Waiter& waiter : Take(job_id)) Wait(job_id, waiter.after_sequence, std::move(waiter.callback));
}

void JobWatchers::NotifyTransient(const std::string& job_id, const v1::JobEvent& event) {
  for (Waiter& waiter : Take(job_id)) waiter.callback(JobEventBatch{{event}, false});
}

}  // namespace qst
