// Short work that a worker does for a user while he waits: tokenising, describing data, exporting a model. It runs
// beside whatever the worker hosts. Nothing of it is stored; a restart of the coordinator ends it.
//
//   waiting ──a worker is connected──▶ running ──its last report──▶ done
//      │  ▲                               │
//      │  └────── worker lost, may be repeated, first time
//      └──nobody came in kLongestWait──▶ failed ◀──┘ else
#ifndef QST_SERVER_WORKER_TASK_MANAGER_H_
#define QST_SERVER_WORKER_TASK_MANAGER_H_

#include <functional>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.pb.h"
#include "proto/qst/v1/coordinator.pb.h"
#include "server/dataset_manager.h"
#include "server/executor.h"
#include "server/model_manager.h"
#include "server/store_layout.h"
#include "server/worker_registry.h"

namespace qst {

// Lives on the control loop.
class WorkerTaskManager {
 public:
  struct Callbacks {
    // May be null.
    std::function<void(const v1::TaskProgress& progress)> on_progress;
    // Once, at the end, unless the caller cancelled: a report whose kind belongs to the request, or the error.
    std::function<void(absl::StatusOr<v1::TaskReport> outcome)> on_done;
  };

  WorkerTaskManager(Executor* executor, WorkerRegistry* registry, ModelManager* models, DatasetManager* datasets,
                    StoreLayout layout);

  // Each checks the request, gives it to a worker (an idle one if there is one) or waits for one to connect, until
  // shortly before `deadline` and some seconds at most; kResourceExhausted then. Returns the id for Cancel.
  // kInvalidArgument, kNotFound, kFailedPrecondition: as the message says. kResourceExhausted: too many at a time.
  absl::StatusOr<std::string> Tokenize(const v1::TokenizeRequest& request, absl::Time deadline, Callbacks callbacks);
  absl::StatusOr<std::string> DescribeDataset(const v1::DescribeDatasetRequest& request, absl::Time deadline,
                                              Callbacks callbacks);
  absl::StatusOr<std::string> ExportModel(const v1::ExportModelRequest& request, absl::Time deadline,
                                          Callbacks callbacks);
  // The caller is gone; nothing is called back any more, and the worker is told to stop.
  void Cancel(const std::string& id);
  // Ends all with this error.
  void EndAll(const absl::Status& status);

  bool UsesModel(const std::string& name) const;
  bool UsesDataset(const std::string& dataset_id) const;

  // Gives waiting tasks to connected workers.
  void Schedule();
  void OnReport(const std::string& worker_id, const v1::TaskReport& report);
  void OnWorkerLost(const std::string& worker_id, const std::string& reason);
  // A worker came back: commands may have been lost with the broken stream.
  void OnWorkerReturned(const std::string& worker_id);

 private:
  struct Task {
    v1::TaskCommand command;
    std::string model;
    std::string dataset_id;
    // Doing it twice does no harm.
    bool is_repeatable = false;
    Callbacks callbacks;
    std::string worker_id;  // empty: waits
    int num_losses = 0;
  };

  absl::Status SetModel(const std::string& name, absl::string_view field, Task* task, std::string* path);
  absl::StatusOr<std::string> Start(Task task, absl::Time deadline);
  // The connected worker that suits best; empty if there is none.
  std::string ChooseWorker() const;
  void Send(const Task& task);
  // `tells_worker`: it forgets the task, and stops if it is still at it.
  void Finish(const std::string& id, absl::StatusOr<v1::TaskReport> outcome, bool tells_worker);

  Executor* const executor_;
  WorkerRegistry* const registry_;
  ModelManager* const models_;
  DatasetManager* const datasets_;
  const StoreLayout layout_;
  std::map<std::string, Task> tasks_;
};

}  // namespace qst

#endif  // QST_SERVER_WORKER_TASK_MANAGER_H_
