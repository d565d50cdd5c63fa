#include "client/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace qst {
namespace {

struct Stat {
  char state;
  uint64_t start_ticks;
};

// /proc/PID/stat: state is field 3, starttime field 22. The name (field 2) may hold anything, so count from its ')'.
std::optional<Stat> ReadStat(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::stringstream text;
  text << file.rdbuf();
  const std::string content = text.str();
  const size_t name_end = content.rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= content.size()) return std::nullopt;
  const std::vector<std::string> fields = absl::StrSplit(content.substr(name_end + 2), ' ');
  Stat stat;
  if (fields.size() < 20 || fields[0].size() != 1 || !absl::SimpleAtoi(fields[19], &stat.start_ticks)) {
    return std::nullopt;
  }
  stat.state = fields[0][0];
  return stat;
}

}  // namespace

bool IsAlive(const ProcessId& process) {
  if (process.pid <= 1) return false;
  // Our own children stay as zombies until asked for.
  waitpid(process.pid, nullptr, WNOHANG);
  const std::optional<Stat> stat = ReadStat(process.pid);
  return stat && stat->start_ticks == process.start_ticks && stat->state != 'Z' && stat->state != 'X';
}

absl::StatusOr<ProcessId> SpawnDaemon(const std::vector<std::string>& argv, const std::vector<std::string>& variables,
                                      const std::string& log_path) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  // Nothing of ours, nor of the shell that called us, may stay open in a daemon.
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);

  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  std::vector<char*> environment;
  for (const std::string& variable : variables) environment.push_back(const_cast<char*>(variable.c_str()));
  for (char** ours = environ; *ours != nullptr; ++ours) {
    const absl::string_view entry = *ours;
    const absl::string_view name = entry.substr(0, entry.find('=') + 1);
    const bool is_replaced = std::any_of(variables.begin(), variables.end(), [&](const std::string& variable) {
      return !name.empty() && absl::StartsWith(variable, name);
    });
    if (!is_replaced) environment.push_back(*ours);
  }
  environment.push_back(nullptr);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0].c_str(), &actions, &attributes, arguments.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return absl::ErrnoToStatus(error, absl::StrCat("cannot start ", argv[0]));
  const std::optional<Stat> stat = ReadStat(pid);
  if (!stat) return absl::InternalError(absl::StrCat("cannot read /proc/", pid, "/stat of ", argv[0]));
  return ProcessId{pid, stat->start_ticks};
}

absl::StatusOr<std::vector<ProcessId>> Terminate(const std::vector<ProcessId>& processes, absl::Duration grace) {
  std::vector<ProcessId> left = processes;
  const auto drop_ended = [&left] {
    left.erase(std::remove_if(left.begin(), left.end(), [](const ProcessId& p) { return !IsAlive(p); }), left.end());
  };
  std::vector<ProcessId> killed;
  for (const int signal : {SIGTERM, SIGKILL}) {
    drop_ended();
    if (signal == SIGKILL) killed = left;
    for (const ProcessId& process : left) {
      if (kill(process.pid, signal) != 0 && errno != ESRCH) {
        return absl::ErrnoToStatus(errno, absl::StrCat("cannot stop process ", process.pid));
      }
    }
    const absl::Time end = absl::Now() + (signal == SIGTERM ? grace : absl::Seconds(10));
    for (drop_ended(); !left.empty() && absl::Now() < end; drop_ended()) absl::SleepFor(absl::Milliseconds(20));
  }
  if (left.empty()) return killed;
  return absl::DeadlineExceededError(absl::StrCat("process ", left[0].pid, " does not end"));
}

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

}  // namespace qst
