// The coordinator's one thread of state.
#ifndef QST_SERVER_CONTROL_LOOP_H_
#define QST_SERVER_CONTROL_LOOP_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/clock.h"
#include "server/executor.h"

namespace qst {

// Runs from construction to Stop (or destruction). Everything but Stop may be called from any thread.
class ControlLoop : public Executor {
 public:
  // `clock` outlives the loop.
  explicit ControlLoop(Clock* clock);
  ~ControlLoop() override;
  ControlLoop(const ControlLoop&) = delete;
  ControlLoop& operator=(const ControlLoop&) = delete;

  bool Post(std::function<void()> task) override;
  void PostAfter(absl::Duration delay, std::function<void()> task) override;
  absl::Time Now() const override { return clock_->Now(); }
  bool IsCurrent() const override { return std::this_thread::get_id() == thread_.get_id(); }

  // Runs `task` on the loop and waits for it; false if the loop has stopped. Not from the loop itself.
  bool RunAndWait(std::function<void()> task);

  // Runs what was posted before, drops timers and what comes later, joins. Not from the loop itself. Idempotent.
  void Stop();

 private:
  void Run();

  Clock* const clock_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  // By due time, then by the order in which they were set.
  std::map<std::pair<absl::Time, std::uint64_t>, std::function<void()>> timers_ ABSL_GUARDED_BY(mutex_);
  std::uint64_t next_timer_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace qst

#endif  // QST_SERVER_CONTROL_LOOP_H_
