// Time that tests can hold in their hands.
#ifndef QST_SERVER_CLOCK_H_
#define QST_SERVER_CLOCK_H_

#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace qst {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
  // Real time to sleep until `deadline` can have been reached.
  virtual absl::Duration SleepUntil(absl::Time deadline) const = 0;
  // `wake` is called whenever time has jumped; nullptr takes it back.
  virtual void SetWake(std::function<void()> wake) = 0;
};

class SystemClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  absl::Duration SleepUntil(absl::Time deadline) const override { return deadline - absl::Now(); }
  void SetWake(std::function<void()>) override {}
};

// Stands still until Advance.
class FakeClock : public Clock {
 public:
  explicit FakeClock(absl::Time start = absl::FromUnixSeconds(1'700'000'000)) : now_(start) {}

  absl::Time Now() const override {
    absl::MutexLock lock(&mutex_);
    return now_;
  }
  absl::Duration SleepUntil(absl::Time) const override { return absl::InfiniteDuration(); }
  void SetWake(std::function<void()> wake) override {
    absl::MutexLock lock(&mutex_);
    wake_ = std::move(wake);
  }
  void Advance(absl::Duration by) {
    std::function<void()> wake;
    {
      absl::MutexLock lock(&mutex_);
      now_ += by;
      wake = wake_;
    }
    // Without the lock: whoever is woken asks for the time.
    if (wake) wake();
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> wake_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_SERVER_CLOCK_H_
