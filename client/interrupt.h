// Ctrl-C (SIGINT) and SIGTERM while a command waits.
#ifndef QST_CLIENT_INTERRUPT_H_
#define QST_CLIENT_INTERRUPT_H_

#include <functional>
#include <thread>

namespace qst {

// While it lives, the first such signal runs `on_interrupt` on a thread of its own; the second ends the process.
// At most one at a time. With `enabled` false it does nothing (tests).
class InterruptScope {
 public:
  InterruptScope(bool enabled, std::function<void()> on_interrupt);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  const bool enabled_;
  std::thread thread_;
};

}  // namespace qst

#endif  // QST_CLIENT_INTERRUPT_H_
