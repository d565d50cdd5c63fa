// Stands in for qst-coordinator and qst-worker (by its own name) where only starting and stopping matter. A worker
// registers with a file STORE/fake-ID.pid, which also has its device; the coordinator lists those.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/testing/fake_coordinator.h"

namespace qst {
namespace {

std::string Flag(int argc, char** argv, const std::string& name) {
  for (int i = 1; i < argc; ++i) {
    if (absl::StartsWith(argv[i], "--" + name + "=")) return argv[i] + name.size() + 3;
  }
  return "";
}

// A file STORE/break-NAME makes NAME fail at once with a message; STORE/mute-NAME makes it ignore SIGTERM;
// STORE/idle-NAME keeps it from registering or serving.
bool IsSet(const std::string& store, const std::string& what, const std::string& name) {
  return std::filesystem::exists(absl::StrCat(store, "/", what, "-", name));
}

int WaitForTerm(const std::string& store, const std::string& name) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  int signal;
  do {
    sigwait(&set, &signal);
  } while (IsSet(store, "mute", name));
  return 0;
}

int RunCoordinator(int argc, char** argv, const std::string& store) {
  FakeCoordinator coordinator;
  if (!coordinator.Start(Flag(argc, argv, "listen"))) {
    std::fprintf(stderr, "address in use: %s\n", Flag(argc, argv, "listen").c_str());
    return 1;
  }
  coordinator.SetWorkers([store] {
    std::vector<v1::Worker> workers;
    for (const auto& entry : std::filesystem::directory_iterator(store)) {
      std::string name = entry.path().filename();
      if (!absl::StartsWith(name, "fake-")) continue;
      int64_t pid = 0;
      std::string device;
      std::ifstream(entry.path()) >> pid >> device;
      v1::Worker worker;
      worker.set_id(std::string(absl::StripSuffix(name.substr(5), ".pid")));
      worker.set_pid(pid);
      worker.set_device(device);
      worker.set_state(v1::WORKER_STATE_IDLE);
      workers.push_back(worker);
    }
    return workers;
  });
  std::ofstream(Flag(argc, argv, "port_file")) << coordinator.address() << "\n";
  return WaitForTerm(store, "coordinator");
}

int Main(int argc, char** argv) {
  // Before any thread: all of them wait for it with sigwait.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  const std::string store = Flag(argc, argv, "store");
  const bool is_coordinator = absl::EndsWith(argv[0], "qst-coordinator");
  const std::string name = is_coordinator ? "coordinator" : Flag(argc, argv, "id");
  std::printf("%s starts:", name.c_str());
  for (int i = 1; i < argc; ++i) std::printf(" %s", argv[i]);
  for (const char* variable : {"NCCL_HOSTID", "NCCL_SOCKET_IFNAME"}) {
    if (const char* value = std::getenv(variable)) std::printf(" %s=%s", variable, value);
  }
  std::printf("\n");
  std::fflush(stdout);
  if (IsSet(store, "break", name)) {
    std::fprintf(stderr, "%s: this one is broken\n", name.c_str());
    return 1;
  }
  if (IsSet(store, "idle", name)) return WaitForTerm(store, name);
  if (is_coordinator) return RunCoordinator(argc, argv, store);
  std::ofstream(absl::StrCat(store, "/fake-", name, ".pid")) << getpid() << " " << Flag(argc, argv, "device");
  return WaitForTerm(store, name);
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) { return qst::Main(argc, argv); }
