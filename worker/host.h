// What this worker hosts: parts of placements, model imports and short tasks, begun and ended by the coordinator's
// commands.
#ifndef QST_WORKER_HOST_H_
#define QST_WORKER_HOST_H_

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/qst/v1/control.pb.h"
#include "worker/compute_device.h"
#include "worker/host_import.h"
#include "worker/host_part.h"
#include "worker/host_task.h"

namespace qst {

// Makes the part that a command asks for; tests give their own.
using PartFactory = std::function<std::unique_ptr<Part>(const v1::HostPart& command, const PartContext& context)>;
std::unique_ptr<Part> MakePart(const v1::HostPart& command, const PartContext& context);

// A part's life:
//
//   HostPart ──▶ running ──Run returns──▶ ended ──ReleasePlan──▶ gone (RELEASED is reported)
//                   └──────ReleasePlan: abort, wait for Run──────▲
//
// AttachStages moves a side network to another plan, whatever it does; the stages that it leaves behind here end.
//
// Handle never blocks: what takes time, such as waiting for a part to end, is done on the host's own thread, in the
// order of the commands, so that a plan is gone before the next one on this worker begins. Thread-safe.
class Host {
 public:
  // `context` without hub and ops; what it points to must outlive the host.
  Host(PartContext context, PartFactory factory);
  // Aborts everything and waits for it.
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // HostPart, AttachStages, ReleasePlan, CancelPlan, ImportCommand, CancelImport, TaskCommand, CancelTask; others are
  // ignored.
  void Handle(const v1::WorkerCommand& command);

  // For the hello of a new session.
  std::vector<v1::HostedPart> Hosted() const;

  // Aborts all parts, imports and tasks; nothing new is taken. Does not wait.
  void Shutdown(const absl::Status& reason);

 private:
  struct HostedEntry {
    v1::HostedPart id;
    std::unique_ptr<ComputeContext> compute;  // the part's
    std::unique_ptr<Part> part;
    std::thread thread;
  };
  struct Plan {
    std::shared_ptr<InprocHub> hub;
    std::list<HostedEntry> parts;
    bool is_released = false;
  };

  void StartPart(const v1::HostPart& command);
  void ReleasePlan(const std::string& plan_id);
  void AttachStages(const v1::AttachStages& command);
  // On the host's thread: the part begins, the plan's parts end.
  void BeginPart(const v1::HostPart& command);
  void EndPlan(const std::string& plan_id);
  void AttachSide(const v1::JobPlan& job_plan);
  void StartImport(const v1::ImportCommand& command);
  void CancelImport(const std::string& name);
  void RefusePart(const v1::HostedPart& part, const absl::Status& status);
  void Post(std::function<void()> work) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunExecutor();

  const PartContext context_;
  const PartFactory factory_;

  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  bool is_shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::function<void()>> work_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Plan> plans_ ABSL_GUARDED_BY(mutex_);
  std::list<std::unique_ptr<ModelImport>> imports_ ABSL_GUARDED_BY(mutex_);
  HostTasks tasks_;
  std::thread executor_;
};

}  // namespace qst

#endif  // QST_WORKER_HOST_H_
