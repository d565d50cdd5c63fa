// An Executor for tests of domain classes: runs on the test's own thread, time moves by hand.
#ifndef QST_SERVER_TESTING_FAKE_EXECUTOR_H_
#define QST_SERVER_TESTING_FAKE_EXECUTOR_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <utility>

#include "absl/time/time.h"
#include "server/executor.h"

namespace qst {

class FakeExecutor : public Executor {
 public:
  bool Post(std::function<void()> task) override {
    tasks_.push_back(std::move(task));
    return true;
  }
  void PostAfter(absl::Duration delay, std::function<void()> task) override {
    timers_.emplace(std::make_pair(now_ + delay, next_++), std::move(task));
  }
  absl::Time Now() const override { return now_; }
  bool IsCurrent() const override { return true; }

  void RunAll() {
    while (!tasks_.empty()) {
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      task();
    }
  }
  // Runs what is posted, and every timer on the way, in order of time.
  void Advance(absl::Duration by) {
    const absl::Time end = now_ + by;
    RunAll();
    while (!timers_.empty() && timers_.begin()->first.first <= end) {
      now_ = std::max(now_, timers_.begin()->first.first);
      auto task = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      task();
      RunAll();
    }
    now_ = end;
  }

  // Time passes without anything being run, as for a process that is suspended.
  void JumpTo(absl::Time time) { now_ = time; }

 private:
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  std::deque<std::function<void()>> tasks_;
  std::map<std::pair<absl::Time, std::uint64_t>, std::function<void()>> timers_;
  std::uint64_t next_ = 0;
};

}  // namespace qst

#endif  // QST_SERVER_TESTING_FAKE_EXECUTOR_H_
