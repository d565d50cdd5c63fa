#include "server/control_loop.h"

#include <memory>

#include "absl/synchronization/notification.h"

namespace qst {

ControlLoop::ControlLoop(Clock* clock) : clock_(clock) {
  clock_->SetWake([this] {
    absl::MutexLock lock(&mutex_);
    changed_.Signal();
  });
  // The thread must not look at thread_ before it is assigned: hold it back until then.
  absl::MutexLock lock(&mutex_);
  thread_ = std::thread([this] { Run(); });
}

ControlLoop::~ControlLoop() { Stop(); }

bool ControlLoop::Post(std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return false;
  tasks_.push_back(std::move(task));
  changed_.Signal();
  return true;
}

void ControlLoop::PostAfter(absl::Duration delay, std::function<void()> task) {
  const absl::Time due = clock_->Now() + delay;
  absl::MutexLock lock(&mutex_);
  if (stopping_) return;
  timers_.emplace(std::make_pair(due, next_timer_++), std::move(task));
  changed_.Signal();
}

bool ControlLoop::RunAndWait(std::function<void()> task) {
  auto done = std::make_shared<absl::Notification>();
  if (!Post([task = std::move(task), done] {
        task();
        done->Notify();
      })) {
    return false;
  }
  done->WaitForNotification();
  return true;
}

void ControlLoop::Stop() {
  clock_->SetWake(nullptr);
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.Signal();
  }
  if (thread_.joinable()) thread_.join();
}

void ControlLoop::Run() {
  while (true) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mutex_);
      while (true) {
        // Timers that are due go first: they are few, and a busy queue must not keep leases from being looked at.
        if (!timers_.empty() && !stopping_ && timers_.begin()->first.first <= clock_->Now()) {
          task = std::move(timers_.begin()->second);
          timers_.erase(timers_.begin());
          break;
        }
        if (!tasks_.empty()) {
          task = std::move(tasks_.front());
          tasks_.pop_front();
          break;
        }
        if (stopping_) {
          timers_.clear();
          return;
        }
        if (timers_.empty()) {
          changed_.Wait(&mutex_);
        } else {
          changed_.WaitWithTimeout(&mutex_, clock_->SleepUntil(timers_.begin()->first.first));
        }
      }
    }
    task();
  }
}

}  // namespace qst
