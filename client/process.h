// Processes of this machine that outlive the command which starts them.
#ifndef QST_CLIENT_PROCESS_H_
#define QST_CLIENT_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace qst {

// A process, not just its number: numbers are given again to strangers.
struct ProcessId {
  pid_t pid = 0;
  // Clock ticks between boot and its start.
  uint64_t start_ticks = 0;
};

// Runs and is no zombie, and is the very process meant.
bool IsAlive(const ProcessId& process);

// Starts argv[0] (a path) in a session of its own, with no input, appending its output to log_path. Its environment is
// ours, with `variables` ("NAME=value") in place of those of the same names.
absl::StatusOr<ProcessId> SpawnDaemon(const std::vector<std::string>& argv, const std::vector<std::string>& variables,
                                      const std::string& log_path);

// Sends SIGTERM to all, once: a second one means "at once" to our daemons. SIGKILL after `grace` to those that are
// left; returns when all are gone. Processes that are gone already, or were never ours, are left alone. Returns those
// that had to be killed.
absl::StatusOr<std::vector<ProcessId>> Terminate(const std::vector<ProcessId>& processes, absl::Duration grace);

// Identifies this boot of the machine; "" if the system does not say.
std::string BootId();

}  // namespace qst

#endif  // QST_CLIENT_PROCESS_H_
