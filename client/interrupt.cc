#include "client/interrupt.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr char kInterrupt = 'i';
constexpr char kStop = 's';

// A handler reaches nothing but globals.
int g_pipe[2] = {-1, -1};
volatile sig_atomic_t g_signals = 0;

void Handle(int signal) {
  const int saved_errno = errno;
  g_signals = g_signals + 1;
  if (g_signals > 1) _exit(128 + signal);
  if (write(g_pipe[1], &kInterrupt, 1) < 0) _exit(128 + signal);
  errno = saved_errno;
}

void SetHandlers(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

InterruptScope::InterruptScope(bool enabled, std::function<void()> on_interrupt) : enabled_(enabled) {
  if (!enabled_) return;
  QST_CHECK(g_pipe[0] == -1);
  QST_CHECK(pipe2(g_pipe, O_CLOEXEC) == 0);
  g_signals = 0;
  thread_ = std::thread([on_interrupt = std::move(on_interrupt)] {
    char byte = 0;
    while (byte != kStop) {
      if (read(g_pipe[0], &byte, 1) < 0 && errno != EINTR) return;
      if (byte == kInterrupt) {
        on_interrupt();
        byte = 0;
      }
    }
  });
  SetHandlers(&Handle);
}

InterruptScope::~InterruptScope() {
  if (!enabled_) return;
  SetHandlers(SIG_DFL);
  QST_CHECK(write(g_pipe[1], &kStop, 1) == 1);
  thread_.join();
  close(g_pipe[0]);
  close(g_pipe[1]);
  g_pipe[0] = g_pipe[1] = -1;
}

}  // namespace qst
