// qst-coordinator: the one public API of a cluster; durable jobs, data sets and models, and the registry of workers.
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/support/status_macros.h"
#include "server/command_line.h"
#include "server/log.h"
#include "server/server.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:7310", "host:port to serve on; port 0 takes a free one");
ABSL_FLAG(std::string, store, "", "folder of the store: jobs, data sets, models (required; made if it is not there)");
ABSL_FLAG(std::string, port_file, "", "file to write \"host:port\" to once the coordinator serves");
ABSL_FLAG(absl::Duration, lease, absl::Seconds(10), "a worker that is silent for so long is lost");
ABSL_FLAG(absl::Duration, recover_grace, absl::Seconds(20),
          "after a restart, workers of running jobs have so long to come back");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning, error or off");
ABSL_FLAG(bool, reflection, true, "serve gRPC reflection");

namespace qst {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr absl::Duration kDrainPatience = absl::Seconds(5);

// Signal handlers may do next to nothing: they write a byte here.
int signal_pipe[2];

void OnSignal(int) {
  const int saved_errno = errno;
  const char byte = 0;
  // A full pipe means that signals wait already.
  [[maybe_unused]] const ssize_t written = write(signal_pipe[1], &byte, 1);
  errno = saved_errno;
}

absl::Status CatchSignals() {
  if (pipe(signal_pipe) != 0) return absl::ErrnoToStatus(errno, "cannot make a pipe");
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return absl::OkStatus();
}

void AwaitSignal() {
  char byte;
  while (read(signal_pipe[0], &byte, 1) < 0 && errno == EINTR) {
  }
}

// Others wait for the file to appear: it must be whole when it does.
absl::Status WritePortFile(const std::string& path, const std::string& address) {
  const std::string temporary = absl::StrCat(path, ".tmp.", getpid());
  std::ofstream file(temporary, std::ios::trunc);
  file << address << "\n";
  file.close();
  if (!file || rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    return absl::ErrnoToStatus(error, absl::StrCat("cannot write --port_file ", path));
  }
  return absl::OkStatus();
}

int Fail(int exit_status, absl::string_view message) {
  std::fprintf(stderr, "qst-coordinator: %.*s\n", static_cast<int>(message.size()), message.data());
  return exit_status;
}

int Main(int argc, char** argv) {
  bool wants_help = false;
  const absl::Status parsed = ParseFlags(argc, argv, &wants_help);
  if (!parsed.ok()) return Fail(kExitUsage, parsed.message());
  if (wants_help) {
    std::printf("Coordinator of a QST finetuning cluster.\n\n  qst-coordinator --store=/var/lib/qst\n\n%s",
                DescribeFlags(__FILE__).c_str());
    return EXIT_SUCCESS;
  }
  const absl::Status log = InitLog(absl::GetFlag(FLAGS_log_level));
  if (!log.ok()) return Fail(kExitUsage, absl::StrCat("--log_level: ", log.message()));
  ServerOptions options;
  options.listen = absl::GetFlag(FLAGS_listen);
  options.store = absl::GetFlag(FLAGS_store);
  options.reflection = absl::GetFlag(FLAGS_reflection);
  options.coordinator.registry.lease = absl::GetFlag(FLAGS_lease);
  options.coordinator.jobs.recover_grace = absl::GetFlag(FLAGS_recover_grace);
  if (options.store.empty()) return Fail(kExitUsage, "--store is required: the folder of the store");
  if (options.coordinator.registry.lease < absl::Seconds(1) || options.coordinator.registry.lease > absl::Hours(1)) {
    return Fail(kExitUsage, absl::StrCat("--lease must be from 1s to 1h, is ",
                                         absl::FormatDuration(options.coordinator.registry.lease)));
  }
  if (options.coordinator.jobs.recover_grace < absl::ZeroDuration() ||
      options.coordinator.jobs.recover_grace > absl::Hours(24)) {
    return Fail(kExitUsage, absl::StrCat("--recover_grace must be from 0s to 24h, is ",
                                         absl::FormatDuration(options.coordinator.jobs.recover_grace)));
  }

  const absl::Status signals = CatchSignals();
  if (!signals.ok()) return Fail(kExitFailed, signals.message());
  auto server = Server::Start(options);
  if (!server.ok()) {
    const bool is_usage = absl::IsInvalidArgument(server.status());
    return Fail(is_usage ? kExitUsage : kExitFailed, server.status().message());
  }
  const std::string port_file = absl::GetFlag(FLAGS_port_file);
  if (!port_file.empty()) {
    const absl::Status written = WritePortFile(port_file, (*server)->address());
    if (!written.ok()) return Fail(kExitFailed, written.message());
  }

  AwaitSignal();
  // Whoever asks twice does not want to wait; the store survives that.
  signal(SIGTERM, [](int) { _exit(kExitFailed); });
  signal(SIGINT, [](int) { _exit(kExitFailed); });
  (*server)->Stop(kDrainPatience);
  if (!port_file.empty()) unlink(port_file.c_str());
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) { return qst::Main(argc, argv); }
