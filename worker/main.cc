// qst-worker: one process per device, hosting backbone stages and side networks as the coordinator tells it.
//
// Exit status: 0 told to leave or ended by a signal, 1 refused by the coordinator or another failure, 2 wrong flags,
// 3 no coordinator reachable at the start.
#include <pthread.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "worker/compute_device.h"
#include "worker/worker.h"
#include "worker/worker_memory.h"
#include "worker/worker_options.h"

namespace {

constexpr int kExitFailed = 1;
constexpr int kExitWrongFlags = 2;
constexpr int kExitUnreachable = 3;

int Fail(int exit_status, absl::string_view message) {
  std::fprintf(stderr, "qst-worker: %.*s\n", static_cast<int>(message.size()), message.data());
  return exit_status;
}

// "2 threads", "NVIDIA L4 (cuda:0, sm_89) with 21.1 GB".
std::string Describe(const qst::ComputeDevice& device) {
  return device.is_cuda() ? absl::StrCat(device.gpu_name(), " with ", qst::FormatBytes(device.gpu_memory_bytes()))
                          : absl::StrCat(device.num_threads(), " threads");
}

}  // namespace

int main(int argc, char** argv) {
  qst::ConfigureMalloc();
  // Before any thread starts, so that only the watcher below receives these signals. A peer that goes away must not end
  // the process either.
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGINT);
  sigaddset(&stop_signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);

  const absl::StatusOr<qst::WorkerFlags> flags = qst::ParseWorkerFlags(argc, argv);
  if (!flags.ok()) return Fail(kExitWrongFlags, flags.status().message());
  if (flags->wants_help) {
    std::fputs(qst::WorkerUsage().c_str(), stdout);
    return 0;
  }
  const absl::StatusOr<qst::WorkerOptions> options = qst::ResolveWorkerOptions(*flags);
  if (!options.ok()) return Fail(kExitWrongFlags, options.status().message());
  absl::StatusOr<std::unique_ptr<qst::ComputeDevice>> device = qst::ComputeDevice::Open(options->compute);
  if (!device.ok()) {
    return Fail(kExitWrongFlags, absl::StrCat("--device=", flags->device, ": ", device.status().message()));
  }

  spdlog::set_default_logger(spdlog::stderr_logger_mt("worker"));
  spdlog::set_pattern(absl::StrCat("%Y-%m-%d %H:%M:%S.%e %L worker ", options->id, ": %v"));
  spdlog::set_level(spdlog::level::from_str(options->log_level));
  spdlog::flush_on(spdlog::level::info);
  spdlog::info("starts: coordinator {}, {}, data plane at {}", options->coordinator, Describe(**device),
               options->data_address.interface.empty() ? options->data_address.host : options->data_address.interface);

  absl::Status status;
  {
    qst::Worker worker(*options, *std::move(device));
    std::thread([&stop_signals, &worker] {
      int signal = 0;
      sigwait(&stop_signals, &signal);
      spdlog::info("ends: signal {}; another one ends it at once", signal);
      worker.Stop();
      sigwait(&stop_signals, &signal);
      _exit(0);
    }).detach();
    status = worker.Run();
  }
  if (status.ok()) {
    spdlog::info("ends");
    std::fflush(stderr);
    // The signal watcher waits still.
    _exit(0);
  }
  std::fflush(stderr);
  _exit(Fail(absl::IsUnavailable(status) ? kExitUnreachable : kExitFailed, status.message()));
}
