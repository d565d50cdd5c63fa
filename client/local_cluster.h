// A coordinator and workers as daemons of this machine, around one store folder.
#ifndef QST_CLIENT_LOCAL_CLUSTER_H_
#define QST_CLIENT_LOCAL_CLUSTER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cluster_state.h"

namespace qst {

struct UpOptions {
  // Absolute.
  std::string store;
  // HOST:PORT of the coordinator; port 0 = any free one. Unset: as before, else 127.0.0.1:7310.
  std::optional<std::string> listen;
  // Unset: as many as before, else 3.
  std::optional<uint64_t> num_workers;
  // Unset: as before, else the cores shared out evenly, at least 1.
  std::optional<uint64_t> threads_per_worker;
  // What workers compute on: "cpu"; "cuda", spread over `num_gpus`; "auto": each takes the first GPU where there is
  // one. Unset: as before, else auto.
  std::optional<std::string> device;
  // With "cuda": worker i gets GPU i % num_gpus. Unset: as before, else 1.
  std::optional<uint64_t> num_gpus;
  // Looked into for qst-coordinator and qst-worker before all other places; may be empty.
  std::string bin_dir;
  // Value of PATH.
  std::string path;
  // Until the coordinator answers and all workers have registered.
  absl::Duration wait = absl::Seconds(60);
};

struct UpResult {
  ClusterState state;
  // Names of the members that this call started; empty = all were up.
  std::vector<std::string> started;
};

// Starts what is missing: everything, or the members that have died since. If something does not come up, stops what
// it started and says why, with the end of the log on `say`.
absl::StatusOr<UpResult> BringUp(const UpOptions& options, absl::FunctionRef<void(const std::string&)> say);

// Stops all members, the coordinator first so that it does not take the workers' end for a loss. Returns how many ran.
absl::StatusOr<int> BringDown(const std::string& store, absl::Duration grace,
                              absl::FunctionRef<void(const std::string&)> say);

// The program `name`: in bin_dir, beside this program, in Bazel's folder `package` beside this program's, or in a
// folder of `path`. kNotFound says where it looked.
absl::StatusOr<std::string> FindProgram(const std::string& name, const std::string& package, const std::string& bin_dir,
                                        const std::string& path);

}  // namespace qst

#endif  // QST_CLIENT_LOCAL_CLUSTER_H_
