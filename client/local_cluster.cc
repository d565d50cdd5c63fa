#include "client/local_cluster.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/atomic_file.h"
#include "client/coordinator_client.h"
#include "client/errors.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr char kCoordinator[] = "coordinator";
constexpr char kDefaultListen[] = "127.0.0.1:7310";
constexpr uint64_t kDefaultWorkers = 3;
constexpr int kLogTailLines = 15;

using Say = absl::FunctionRef<void(const std::string&)>;

// Keeps two `qst up` or `qst down` from working on one store at a time.
class StoreLock {
 public:
  static absl::StatusOr<StoreLock> Take(const std::string& store) {
    const std::string path = store + "/cluster.lock";
    StoreLock lock(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (lock.fd_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
    if (flock(lock.fd_, LOCK_EX | LOCK_NB) != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("another `qst up` or `qst down` is at work on ", store, "; try again when it is done"));
    }
    return lock;
  }
  StoreLock(StoreLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~StoreLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
  explicit StoreLock(int fd) : fd_(fd) {}
  int fd_;
};

uint64_t AvailableCores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

// The address at which clients of this machine reach what listens on any of its addresses.
std::string Reachable(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return address;
  const std::string host = address.substr(0, colon);
  if (host == "0.0.0.0" || host == "*") return "127.0.0.1" + address.substr(colon);
  if (host == "[::]") return "[::1]" + address.substr(colon);
  return address;
}

std::string DescribeDevices(const ClusterState& state) {
  if (state.device != "cuda") return state.device == "cpu" ? "cpu" : "cuda:0 where there is a GPU, else cpu";
  return absl::StrCat(state.num_gpus, state.num_gpus == 1 ? " GPU" : " GPUs");
}

void SayLogTail(const std::string& path, Say say) {
  const absl::StatusOr<std::string> text = ReadFile(path, size_t{64} << 20);
  if (!text.ok()) return;
  std::vector<std::string> lines = absl::StrSplit(absl::StripTrailingAsciiWhitespace(*text), '\n');
  const size_t first = lines.size() > kLogTailLines ? lines.size() - kLogTailLines : 0;
  say(absl::StrCat("end of ", path, ":"));
  for (size_t i = first; i < lines.size(); ++i) say("  " + lines[i]);
}

class Starter {
 public:
  Starter(const UpOptions& options, Say say) : options_(options), say_(say), end_(absl::Now() + options.wait) {}

  absl::StatusOr<UpResult> Run() {
    QST_RETURN_IF_ERROR(MakeFolders(options_.store + "/logs"));
    QST_ASSIGN_OR_RETURN(const StoreLock lock, StoreLock::Take(options_.store));
    QST_ASSIGN_OR_RETURN(std::optional<ClusterState> before, LoadClusterState(options_.store));
    if (before) state_ = *std::move(before);
    QST_RETURN_IF_ERROR(Plan());
    const absl::Status status = Start();
    if (!status.ok()) {
      StopStarted();
      return status;
    }
    return UpResult{state_, started_};
  }

 private:
  // Decides addresses and counts from the options and what runs already.
  absl::Status Plan() {
    uint64_t workers_before = 0;
    bool any_alive = false;
    for (const ClusterMember& member : state_.members) {
      any_alive = any_alive || state_.IsMemberAlive(member.name);
      if (member.name != kCoordinator) ++workers_before;
    }
    if (any_alive && options_.listen && *options_.listen != state_.listen && *options_.listen != state_.address) {
      return absl::FailedPreconditionError(
          absl::StrCat("a cluster is up at ", state_.address, " with the store ", options_.store,
                       "; stop it first with `qst down --store=", options_.store, "`"));
    }
    if (any_alive && ((options_.device && *options_.device != state_.device) ||
                      (options_.num_gpus && *options_.num_gpus != state_.num_gpus))) {
      return absl::FailedPreconditionError(
          absl::StrCat("the cluster that is up computes on ", DescribeDevices(state_),
                       "; to change that, stop it first with `qst down --store=", options_.store, "`"));
    }
    num_workers_ = options_.num_workers.value_or(workers_before > 0 ? workers_before : kDefaultWorkers);
    if (any_alive) num_workers_ = std::max(num_workers_, workers_before);
    if (!any_alive) {
      // What has no living member is over: other numbers may apply, and old process numbers mean nothing.
      const std::string listen = options_.listen.value_or(state_.listen.empty() ? kDefaultListen : state_.listen);
      ClusterState fresh;
      fresh.listen = listen;
      fresh.threads_per_worker = state_.threads_per_worker;
      fresh.device = options_.device.value_or(state_.device);
      fresh.num_gpus = options_.num_gpus.value_or(state_.num_gpus);
      state_ = std::move(fresh);
      state_.boot_id = BootId();
    }
    state_.store = options_.store;
    if (options_.threads_per_worker) state_.threads_per_worker = *options_.threads_per_worker;
    if (state_.threads_per_worker == 0) {
      state_.threads_per_worker = std::max<uint64_t>(1, AvailableCores() / std::max<uint64_t>(1, num_workers_));
    }
    return absl::OkStatus();
  }

  absl::Status Start() {
    if (!state_.IsMemberAlive(kCoordinator)) QST_RETURN_IF_ERROR(StartCoordinator());
    std::vector<std::string> names;
    for (uint64_t i = 0; i < num_workers_; ++i) names.push_back(absl::StrCat("w", i));
    for (uint64_t i = 0; i < num_workers_; ++i) {
      const std::string& name = names[i];
      if (state_.IsMemberAlive(name)) continue;
      QST_ASSIGN_OR_RETURN(const std::string program,
                           FindProgram("qst-worker", "worker", options_.bin_dir, options_.path));
      QST_RETURN_IF_ERROR(Spawn(name,
                                {program, "--coordinator=" + state_.address, "--store=" + state_.store, "--id=" + name,
                                 absl::StrCat("--threads=", state_.threads_per_worker), "--device=" + DeviceOf(i)},
                                Variables(name)));
    }
    return AwaitWorkers(names);
  }

  std::string DeviceOf(uint64_t worker) const {
    return state_.device == "cuda" ? absl::StrCat("cuda:", worker % state_.num_gpus) : state_.device;
  }

  bool SharesGpus() const { return state_.device != "cpu" && num_workers_ > state_.num_gpus; }

  // NCCL takes two processes on one GPU for a mistake, unless each says that it is a host of its own; then it goes
  // through sockets, for which this machine's own interface is the one.
  std::vector<std::string> Variables(const std::string& name) const {
    if (!SharesGpus()) return {};
    std::vector<std::string> variables = {"NCCL_HOSTID=" + name};
    if (std::getenv("NCCL_SOCKET_IFNAME") == nullptr) variables.emplace_back("NCCL_SOCKET_IFNAME=lo");
    return variables;
  }

  absl::Status StartCoordinator() {
    QST_ASSIGN_OR_RETURN(const std::string program,
                         FindProgram("qst-coordinator", "server", options_.bin_dir, options_.path));
    const std::string port_file = state_.store + "/coordinator.address";
    if (unlink(port_file.c_str()) != 0 && errno != ENOENT) {
      return absl::ErrnoToStatus(errno, absl::StrCat(port_file, ": cannot remove"));
    }
    // Workers that live on look for it where it was.
    const bool any_port = absl::EndsWith(state_.listen, ":0");
    const std::string listen = any_port && !state_.address.empty() ? state_.address : state_.listen;
    QST_RETURN_IF_ERROR(Spawn(
        kCoordinator, {program, "--listen=" + listen, "--store=" + state_.store, "--port_file=" + port_file}, {}));
    while (absl::Now() < end_) {
      const absl::StatusOr<std::string> address = ReadFile(port_file, 4096);
      if (address.ok() && !absl::StripAsciiWhitespace(*address).empty()) {
        state_.address = Reachable(std::string(absl::StripAsciiWhitespace(*address)));
        return SaveClusterState(state_);
      }
      if (!state_.IsMemberAlive(kCoordinator)) return Died(kCoordinator);
      absl::SleepFor(absl::Milliseconds(20));
    }
    return TooSlow(kCoordinator, "has not begun to serve");
  }

  absl::Status AwaitWorkers(const std::vector<std::string>& names) {
    CoordinatorClient client({state_.address, absl::Seconds(5)});
    std::string missing = names.empty() ? kCoordinator : names[0];
    absl::Status last;
    while (absl::Now() < end_) {
      const auto response = client.ListWorkers();
      last = response.status();
      if (response.ok()) {
        missing.clear();
        for (const std::string& name : names) {
          if (!IsRegistered(*response, name)) missing = name;
        }
        if (missing.empty()) {
          SaySharedGpus(*response);
          return absl::OkStatus();
        }
      }
      if (!state_.IsMemberAlive(kCoordinator)) return Died(kCoordinator);
      for (const std::string& name : names) {
        if (!state_.IsMemberAlive(name)) return Died(name);
      }
      absl::SleepFor(absl::Milliseconds(50));
    }
    if (!last.ok()) return TooSlow(kCoordinator, absl::StrCat("does not answer: ", last.message()));
    return TooSlow(missing, "has not registered with the coordinator");
  }

  // Only the workers know whether there are GPUs.
  void SaySharedGpus(const v1::ListWorkersResponse& response) {
    std::map<std::string, std::vector<std::string>> users;
    for (const v1::Worker& worker : response.workers()) {
      if (absl::StartsWith(worker.device(), "cuda") && IsRegistered(response, worker.id())) {
        users[worker.device()].push_back(worker.id());
      }
    }
    for (const auto& [device, ids] : users) {
      if (ids.size() < 2 || !SharesGpus()) continue;
      say_(absl::StrCat(absl::StrJoin(ids, ", "), " share ", device,
                        ": NCCL_HOSTID is set for each, and NCCL goes through sockets; with a GPU for each worker "
                        "(--gpus=N) it is faster"));
    }
  }

  bool IsRegistered(const v1::ListWorkersResponse& response, const std::string& name) const {
    for (const v1::Worker& worker : response.workers()) {
      const ClusterMember* member = state_.Find(name);
      if (worker.id() == name && worker.state() != v1::WORKER_STATE_LOST && member != nullptr &&
          worker.pid() == member->process.pid) {
        return true;
      }
    }
    return false;
  }

  absl::Status Spawn(const std::string& name, const std::vector<std::string>& argv,
                     const std::vector<std::string>& variables) {
    const std::string log_path = absl::StrCat(state_.store, "/logs/", name, ".log");
    QST_ASSIGN_OR_RETURN(const ProcessId process, SpawnDaemon(argv, variables, log_path));
    auto& members = state_.members;
    members.erase(std::remove_if(members.begin(), members.end(), [&](const auto& m) { return m.name == name; }),
                  members.end());
    members.push_back({name, process, log_path});
    started_.push_back(name);
    return SaveClusterState(state_);
  }

  absl::Status Died(const std::string& name) {
    const std::string log_path = state_.Find(name)->log_path;
    SayLogTail(log_path, say_);
    return absl::UnknownError(absl::StrCat(name, " ended while starting; see ", log_path));
  }

  absl::Status TooSlow(const std::string& name, absl::string_view what) {
    const std::string log_path = state_.Find(name)->log_path;
    SayLogTail(log_path, say_);
    return absl::DeadlineExceededError(absl::StrCat(name, " ", what, " within ", absl::FormatDuration(options_.wait),
                                                    " (raise it with --wait); see ", log_path));
  }

  void StopStarted() {
    std::vector<ProcessId> processes;
    for (const std::string& name : started_) {
      if (state_.IsMemberAlive(name)) processes.push_back(state_.Find(name)->process);
    }
    const auto stopped = Terminate(processes, absl::Seconds(5));
    if (!stopped.ok()) say_(std::string(stopped.status().message()));
  }

  const UpOptions& options_;
  const Say say_;
  const absl::Time end_;
  ClusterState state_;
  uint64_t num_workers_ = 0;
  std::vector<std::string> started_;
};

}  // namespace

absl::StatusOr<std::string> FindProgram(const std::string& name, const std::string& package, const std::string& bin_dir,
                                        const std::string& path) {
  std::vector<std::string> folders;
  if (!bin_dir.empty()) {
    folders = {bin_dir};
  } else {
    std::error_code error;
    const std::filesystem::path own = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
    if (!error) folders = {own.string(), (own.parent_path() / package).string()};
    for (absl::string_view folder : absl::StrSplit(path, ':', absl::SkipEmpty())) folders.emplace_back(folder);
  }
  for (const std::string& folder : folders) {
    const std::string candidate = absl::StrCat(folder, "/", name);
    if (access(candidate.c_str(), X_OK) == 0 && !std::filesystem::is_directory(candidate)) return candidate;
  }
  return absl::NotFoundError(absl::StrCat("program ", name, " is in none of ", absl::StrJoin(folders, ", "),
                                          "; say where it is with --bin-dir=DIR"));
}

absl::StatusOr<UpResult> BringUp(const UpOptions& options, Say say) { return Starter(options, say).Run(); }

absl::StatusOr<int> BringDown(const std::string& store, absl::Duration grace, Say say) {
  QST_ASSIGN_OR_RETURN(std::optional<ClusterState> state, LoadClusterState(store));
  if (!state) return 0;
  QST_ASSIGN_OR_RETURN(const StoreLock lock, StoreLock::Take(store));
  std::vector<ProcessId> coordinator, workers;
  for (const ClusterMember& member : state->members) {
    if (!state->IsMemberAlive(member.name)) continue;
    (member.name == kCoordinator ? coordinator : workers).push_back(member.process);
  }
  for (const auto& group : {coordinator, workers}) {
    QST_ASSIGN_OR_RETURN(const std::vector<ProcessId> killed, Terminate(group, grace));
    for (const ProcessId& process : killed) {
      say(absl::StrCat("process ", process.pid, " did not end in ", absl::FormatDuration(grace), "; killed it"));
    }
  }
  const std::string path = store + "/cluster.json";
  if (unlink(path.c_str()) != 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot remove"));
  return static_cast<int>(coordinator.size() + workers.size());
}

}  // namespace qst
