// Where coordinator state lives: one thread at a time, closures in order. Domain classes take an Executor and hold no
// locks; a real one is ControlLoop, tests use FakeExecutor and move time by hand.
#ifndef QST_SERVER_EXECUTOR_H_
#define QST_SERVER_EXECUTOR_H_

#include <functional>

#include "absl/time/time.h"

namespace qst {

class Executor {
 public:
  virtual ~Executor() = default;

  // Runs `task` after all tasks posted before. May be called from any thread. False, and the task is dropped, once
  // the executor has stopped.
  virtual bool Post(std::function<void()> task) = 0;

  // Runs `task` not before `delay` from now. There is no way to take it back: a task checks whether it still matters.
  virtual void PostAfter(absl::Duration delay, std::function<void()> task) = 0;

  virtual absl::Time Now() const = 0;

  // Whether the caller runs on the executor: what QST_CHECK asks in domain classes.
  virtual bool IsCurrent() const = 0;
};

}  // namespace qst

#endif  // QST_SERVER_EXECUTOR_H_
