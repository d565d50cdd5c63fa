// The coordinator without its network: all domain objects wired together on one executor. Knows no gRPC.
#ifndef QST_SERVER_COORDINATOR_H_
#define QST_SERVER_COORDINATOR_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.pb.h"
#include "server/dataset_manager.h"
#include "server/executor.h"
#include "server/generate_manager.h"
#include "server/job_manager.h"
#include "server/job_store/job_store.h"
#include "server/model_manager.h"
#include "server/rendezvous.h"
#include "server/store_layout.h"
#include "server/worker_registry.h"
#include "server/worker_task_manager.h"

namespace qst {

struct CoordinatorOptions {
  WorkerRegistryOptions registry;
  JobManagerOptions jobs;
  // How often leases are looked at.
  absl::Duration tick = absl::Milliseconds(500);
};

// Everything but construction runs on the executor, which must have stopped before this is destroyed.
class Coordinator {
 public:
  Coordinator(Executor* executor, JobStore* store, const StoreLayout& layout, const CoordinatorOptions& options);

  // Takes up what an earlier coordinator left, and begins to watch leases.
  absl::Status Start();

  JobManager& jobs() { return jobs_; }
  ModelManager& models() { return models_; }
  DatasetManager& datasets() { return datasets_; }
  GenerateManager& generations() { return generations_; }
  WorkerTaskManager& tasks() { return tasks_; }
  WorkerRegistry& registry() { return registry_; }
  Rendezvous& rendezvous() { return rendezvous_; }

  // First message of a session. An error ends the session: kFailedPrecondition if the worker sees another store.
  absl::Status OnHello(const v1::Hello& hello, std::shared_ptr<WorkerLink> link);
  // Any later message.
  void OnReport(const std::string& worker_id, const WorkerLink* link, const v1::WorkerReport& report);
  void OnSessionEnded(const std::string& worker_id, const WorkerLink* link);

  // From now on requests that begin something get kUnavailable; watches, generations and sessions end. Jobs go
  // on where they are.
  void BeginDrain();
  // kUnavailable while draining.
  absl::Status CheckAccepting() const;

 private:
  void ScheduleSoon();
  void Tick();

  Executor* const executor_;
  const StoreLayout layout_;
  const CoordinatorOptions options_;
  WorkerRegistry registry_;
  Rendezvous rendezvous_;
  DatasetManager datasets_;
  ModelManager models_;
  JobManager jobs_;
  GenerateManager generations_;
  WorkerTaskManager tasks_;
  bool is_scheduled_ = false;
  bool is_draining_ = false;
};

}  // namespace qst

#endif  // QST_SERVER_COORDINATOR_H_
