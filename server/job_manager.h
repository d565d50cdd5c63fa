// The life of jobs: accepted, queued, placed, run by workers, ended. States and ways between them: job_state.h.
//
// Rules that everything here keeps:
//   - A change is committed to the store before a watcher, a client or a worker hears of it.
//   - First come, first served: only the oldest queued job is considered for placement.
//   - A report is acknowledged once it is stored; a report that comes twice changes nothing.
//   - When a stage is lost while the job runs, it is placed again and the side network goes on where it was
//     (job_repair.cc). When the side network's worker is lost, or a worker before the job runs, the job is queued again
//     and resumes from its checkpoint. Losses without a step between them fail the job at last.
//   - After a restart of the coordinator, RUNNING and EVALUATING jobs whose side network comes back within
//   recover_grace
//     go on; others, and those in PREPARING, are queued again.
#ifndef QST_SERVER_JOB_MANAGER_H_
#define QST_SERVER_JOB_MANAGER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.pb.h"
#include "proto/qst/v1/coordinator.pb.h"
#include "server/dataset_manager.h"
#include "server/executor.h"
#include "server/job_store/job_store.h"
#include "server/job_watchers.h"
#include "server/model_manager.h"
#include "server/plan.h"
#include "server/rendezvous.h"
#include "server/store_layout.h"
#include "server/worker_registry.h"

namespace qst {

struct JobManagerOptions {
  // How long a side network may take to answer a cancellation.
  absl::Duration cancel_grace = absl::Seconds(5);
  // How long workers may take to come back after a restart of the coordinator.
  absl::Duration recover_grace = absl::Seconds(20);
  // How long after its start the coordinator waits for workers to register before it decides how many there are.
  absl::Duration settle = absl::Seconds(3);
  // Progress events of one job are stored at most so often; the newest progress is always in the job itself.
  absl::Duration progress_interval = absl::Seconds(1);
  // A part that fails because its peer died may report it before the peer is missed: the cause is looked for so long.
  absl::Duration failure_hold = absl::Milliseconds(500);
  // How long a lost stage waits for an idle worker before it joins another part of its job on that one's worker.
  absl::Duration share_after = absl::Seconds(10);
  // Losses in a row, with no step done between them, after which a job fails.
  int max_losses_without_step = 5;
};

// Lives on the control loop.
class JobManager {
 public:
  struct Services {
    Executor* executor;
    JobStore* store;
    WorkerRegistry* registry;
    Rendezvous* rendezvous;
    ModelManager* models;
    DatasetManager* datasets;
  };

  JobManager(Services services, StoreLayout layout, JobManagerOptions options);

  // Takes up the jobs that an earlier coordinator left. Call once, before anything else.
  absl::Status Recover();

  absl::StatusOr<v1::Job> Submit(const v1::SubmitJobRequest& request);
  absl::StatusOr<v1::Job> Get(const std::string& id);
  absl::StatusOr<std::vector<v1::Job>> List(const v1::ListJobsRequest& request);
  // Returns the job as it is then: CANCELLED if it was queued, else on its way there. A second call changes nothing.
  // kFailedPrecondition: it succeeded or failed before.
  absl::StatusOr<v1::Job> Cancel(const std::string& id);
  JobWatchers* watchers() { return &watchers_; }

  bool UsesModel(const std::string& name) const;
  bool UsesDataset(const std::string& id) const;
  // A queued job comes first when workers get free.
  bool HasQueued() const { return !queue_.empty(); }

  // Places the oldest queued job if it fits, and so on.
  void Schedule();

  // A worker said hello; `is_new`: not known before as this process.
  void OnHello(const v1::Hello& hello, bool is_new);
  // Whether a worker does right to host this part.
  bool OwnsPart(const v1::HostedPart& part) const;
  // Of a plan that it owns.
  void OnPartReport(const std::string& worker_id, const v1::PartReport& report);
  void OnWorkerLost(const std::string& worker_id, const std::string& plan_id, const std::string& reason);
  // Of any plan: one that is over is acknowledged and released.
  void OnJobReport(const std::string& worker_id, const v1::JobReport& report);

 private:
  struct HeldFailure {
    std::string message;
    std::uint64_t report_sequence = 0;  // 0 = not from a JobReport
    // Of the loss of another part's worker.
    bool may_be_consequence = false;
  };
  // Stages that are to be placed again.
  struct Repair {
    std::set<std::string> gone;  // workers
    absl::Time since;
  };
  struct ActiveJob {
    JobRecord record;
    std::optional<Plan> plan;  // in PREPARING, RUNNING, EVALUATING
    // After a restart, until all parts are back.
    bool is_recovering = false;
    // It comes from an earlier coordinator, whose workers may be on their way here.
    bool is_inherited = false;
    // Its present plan was taken over from an earlier coordinator.
    bool was_recovered = false;
    std::vector<bool> parts_back;
    // Parts of returned workers that are not there any more.
    std::vector<bool> parts_missing;
    absl::Time progress_stored = absl::InfinitePast();
    std::optional<HeldFailure> held_failure;
    std::optional<Repair> repair;
    // A loss was reported and its cause is looked for.
    bool is_loss_suspected = false;
    // Stages were placed again, and the side network has not said that it has them.
    std::optional<absl::Time> reattaching_since;
    int losses_without_step = 0;
    std::uint64_t step_of_last_loss = 0;

    const std::string& id() const { return record.job.id(); }
  };

  // job_manager.cc
  ActiveJob* FindPlan(const std::string& plan_id) const;
  // Of any revision of the plan.
  ActiveJob* FindAttempt(const std::string& plan_id) const;
  ActiveJob* Find(const std::string& id) const;
  v1::JobEvent NewEvent(ActiveJob* job);
  absl::Status Save(ActiveJob* job, const std::vector<v1::JobEvent>& events, Durability durability);
  absl::Status Transition(ActiveJob* job, v1::JobState to, const std::string& message);
  void SetStatus(ActiveJob* job, const std::string& message);
  void AddMessage(ActiveJob* job, const std::string& message);
  void Enqueue(const std::string& id);
  absl::StatusOr<bool> TryPlace(ActiveJob* job);
  Plan BuildPlan(const v1::Job& job, const std::string& model_name, const std::string& attached_from = "") const;

  // job_lifecycle.cc
  void End(ActiveJob* job, v1::JobState state, const std::string& message);
  void Requeue(ActiveJob* job, const std::string& message);
  void FailOrHold(ActiveJob* job, HeldFailure failure);
  void FailHeld(ActiveJob* job);
  void OnStateReport(ActiveJob* job, std::uint64_t sequence, const v1::JobStateReport& report);
  absl::Status StoreReport(ActiveJob* job, const v1::JobReport& report);
  void Acknowledge(const std::string& worker_id, const std::string& plan_id, std::uint64_t sequence);
  std::string LostMessage(const ActiveJob& job, const std::string& worker_id, const std::string& reason) const;
  void PartIsBack(ActiveJob* job, std::size_t part_index);
  void PartIsMissing(ActiveJob* job, std::size_t part_index);

  // job_repair.cc
  bool CanRepair(const ActiveJob& job) const;
  bool CountLoss(ActiveJob* job, const std::string& message);
  void SuspectLoss(ActiveJob* job, const std::string& message);
  void BeginRepair(ActiveJob* job, std::set<std::string> gone, const std::string& message);
  bool TryRepair(ActiveJob* job);
  void RepairAll();
  void SideIsAttached(ActiveJob* job);
  void EndRecovery(ActiveJob* job, bool is_last_chance);

  const Services services_;
  const StoreLayout layout_;
  const JobManagerOptions options_;
  JobWatchers watchers_;
  absl::Time settled_at_;
  // Jobs that are not over, by id.
  std::map<std::string, std::unique_ptr<ActiveJob>> active_;
  // Ids of queued jobs, oldest first.
  std::vector<std::string> queue_;
};

}  // namespace qst

#endif  // QST_SERVER_JOB_MANAGER_H_
