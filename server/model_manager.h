// The models of the store: imports on idle workers, and what jobs may use.
//
// An import goes to a folder of its own and takes its place by renaming once it is whole; so a model that is being
// replaced stays as it is until then, and an import that fails leaves nothing.
#ifndef QST_SERVER_MODEL_MANAGER_H_
#define QST_SERVER_MODEL_MANAGER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/qst/v1/coordinator.pb.h"
#include "server/executor.h"
#include "server/job_store/job_store.h"
#include "server/store_layout.h"
#include "server/worker_registry.h"

namespace qst {

// Lives on the control loop.
class ModelManager {
 public:
  using Callback = std::function<void(absl::StatusOr<v1::Model> model, std::uint64_t version)>;

  ModelManager(Executor* executor, JobStore* store, WorkerRegistry* registry, StoreLayout layout,
               absl::Duration recover_grace);

  // Whether a job that is not over uses the model; asked before it is replaced or removed.
  void SetInUse(std::function<bool(const std::string& name)> in_use) { in_use_ = std::move(in_use); }

  // Takes up what an earlier coordinator left: waiting imports wait again, running ones fail unless their worker
  // reports within the grace.
  absl::Status Recover();

  // kAlreadyExists: the name is taken and replace is not set, or an import of it is under way. kInvalidArgument.
  absl::StatusOr<v1::Model> Import(const v1::ImportModelRequest& request);
  // kNotFound names `qst model list`.
  absl::StatusOr<v1::Model> Get(const std::string& name);
  absl::StatusOr<std::vector<v1::Model>> List();
  // Stops an import that is under way. kNotFound, kFailedPrecondition: in use.
  absl::Status Delete(const std::string& name);

  // Calls back with the model as the import shows it as soon as its version differs from `seen_version` (0 = none
  // seen): now or later. Returns a handle for Forget, 0 if it has called back already.
  std::uint64_t Wait(const std::string& name, std::uint64_t seen_version, Callback callback);
  void Forget(std::uint64_t handle);
  // Calls all who wait with this error.
  void EndWaits(const absl::Status& status);

  // A model that jobs can use. kNotFound; kFailedPrecondition: importing or failed.
  absl::StatusOr<v1::Model> GetReady(const std::string& name);
  // Its files are about to change: nothing may be placed on it.
  bool IsBeingReplaced(const std::string& name) const;

  // Gives waiting imports to idle workers.
  void Schedule();
  void OnReport(const std::string& worker_id, const v1::ModelReport& report);
  void OnWorkerLost(const std::string& worker_id, const std::string& model, const std::string& reason);
  // A worker said hello. One that is new to this coordinator may be importing still for an earlier one; one that came
  // back may have lost its command with the broken stream.
  void OnWorkerConnected(const std::string& worker_id, bool is_new);

 private:
  struct Waiter {
    std::string name;
    std::uint64_t seen_version;
    Callback callback;
  };

  void SendImport(const ModelRecord& record);
  absl::Status Fail(ModelRecord record, const std::string& message);
  absl::Status Finish(ModelRecord record, v1::Model reported);
  absl::Status Save(const ModelRecord& record);
  void Notify(const std::string& name);
  void GiveUpRecovered();
  absl::StatusOr<ModelRecord> Find(const std::string& name);
  std::uint64_t VersionOf(const std::string& name);

  Executor* const executor_;
  JobStore* const store_;
  WorkerRegistry* const registry_;
  const StoreLayout layout_;
  const absl::Duration recover_grace_;
  std::function<bool(const std::string&)> in_use_;
  // Names, oldest first.
  std::deque<std::string> queue_;
  // Imports that an earlier coordinator started, by name: the worker has not reported since.
  std::map<std::string, std::string> recovered_;
  std::map<std::string, bool> replacing_;
  std::map<std::string, std::uint64_t> versions_;
  // Reports on imports, to see whether a worker says anything.
  std::map<std::string, std::uint64_t> num_reports_;
  std::map<std::uint64_t, Waiter> waiters_;
  std::uint64_t next_handle_ = 1;
};

}  // namespace qst

#endif  // QST_SERVER_MODEL_MANAGER_H_
