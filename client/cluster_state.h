// What `qst up` remembers of a local cluster: STORE/cluster.json, and which store is the current one.
#ifndef QST_CLIENT_CLUSTER_STATE_H_
#define QST_CLIENT_CLUSTER_STATE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/process.h"

namespace qst {

using GetEnv = std::function<std::optional<std::string>(const std::string&)>;

struct ClusterMember {
  // "coordinator", "w0", "w1", ...
  std::string name;
  ProcessId process;
  std::string log_path;
};

struct ClusterState {
  // Absolute.
  std::string store;
  // Where clients and workers find the coordinator.
  std::string address;
  // What it was told to listen on.
  std::string listen;
  std::string boot_id;
  uint64_t threads_per_worker = 0;
  // What workers compute on: "auto", "cpu" or "cuda", and the GPUs that they are spread over.
  std::string device = "auto";
  uint64_t num_gpus = 1;
  std::vector<ClusterMember> members;

  // Null if there is none of that name. Alive only in the boot that started it.
  const ClusterMember* Find(const std::string& name) const;
  bool IsMemberAlive(const std::string& name) const;
};

// $XDG_DATA_HOME/qst, else ~/.local/share/qst; "" without a home.
std::string DefaultStore(const GetEnv& getenv);

// nullopt if there is no cluster.json; kDataLoss if it cannot be understood.
absl::StatusOr<std::optional<ClusterState>> LoadClusterState(const std::string& store);
absl::Status SaveClusterState(const ClusterState& state);

// The store of the cluster that `qst up` started last, else the default one.
std::string CurrentStore(const GetEnv& getenv);
absl::Status SetCurrentStore(const GetEnv& getenv, const std::string& store);

// Address of the current cluster's coordinator, if any of its processes runs.
std::optional<std::string> CurrentAddress(const GetEnv& getenv);

}  // namespace qst

#endif  // QST_CLIENT_CLUSTER_STATE_H_
