// Generation requests: each gets a placement of its own for as long as its client listens. Nothing of them is stored;
// a restart of the coordinator ends them.
#ifndef QST_SERVER_GENERATE_MANAGER_H_
#define QST_SERVER_GENERATE_MANAGER_H_

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.pb.h"
#include "proto/qst/v1/coordinator.pb.h"
#include "server/executor.h"
#include "server/job_store/job_store.h"
#include "server/model_manager.h"
#include "server/plan.h"
#include "server/rendezvous.h"
#include "server/store_layout.h"
#include "server/worker_registry.h"

namespace qst {

// Lives on the control loop.
class GenerateManager {
 public:
  struct Callbacks {
    std::function<void(const v1::GenerateResponse& response)> on_response;
    // Once, at the end, unless the client cancelled.
    std::function<void(const absl::Status& status)> on_done;
  };

  GenerateManager(Executor* executor, JobStore* store, WorkerRegistry* registry, Rendezvous* rendezvous,
                  ModelManager* models, StoreLayout layout);

  // Starts, or waits for idle workers: until shortly before `deadline` (a minute at most), then kResourceExhausted
  // says what was missing. Returns the id for Cancel. kInvalidArgument, kNotFound, kFailedPrecondition.
  absl::StatusOr<std::string> Start(const v1::GenerateRequest& request, absl::Time deadline, Callbacks callbacks);
  // The client is gone; nothing is called back any more.
  void Cancel(const std::string& id);

  // Ends all with this error.
  void EndAll(const absl::Status& status);

  bool UsesModel(const std::string& name) const;
  void Schedule();
  bool OwnsPlan(const std::string& plan_id) const;
  void OnPartReport(const std::string& worker_id, const v1::PartReport& report);
  void OnReport(const std::string& worker_id, const v1::GenerateReport& report);
  void OnWorkerLost(const std::string& worker_id, const std::string& plan_id, const std::string& reason);
  // A worker said hello. A part that it should host and does not ends the generation, and so does the generator itself:
  // text may have been lost with the broken stream.
  void OnHello(const v1::Hello& hello);

 private:
  struct Generation {
    std::string id;
    v1::GenerateRequest request;
    std::string side_network_path;
    // Of the job whose side network is used.
    std::optional<v1::JobSpec> trained;
    Callbacks callbacks;
    std::string waits_for;
    std::optional<Plan> plan;
  };

  bool TryPlace(Generation* generation);
  void Finish(const std::string& id, const absl::Status& status);
  Generation* FindPlan(const std::string& plan_id);

  Executor* const executor_;
  JobStore* const store_;
  WorkerRegistry* const registry_;
  Rendezvous* const rendezvous_;
  ModelManager* const models_;
  const StoreLayout layout_;
  std::map<std::string, Generation> generations_;
  std::deque<std::string> queue_;
};

}  // namespace qst

#endif  // QST_SERVER_GENERATE_MANAGER_H_
