// A placement in motion: the parts of one plan, who hosts them, and how far each is.
#ifndef QST_SERVER_PLAN_H_
#define QST_SERVER_PLAN_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "proto/qst/v1/control.pb.h"
#include "proto/qst/v1/resources.pb.h"
#include "server/worker_registry.h"

namespace qst {

enum class PartPhase {
  kCommanded,  // the worker was told, and has said nothing yet
  kLoading,
  kReady,
  kEnded,
};

struct PlanPart {
  v1::HostedPart id;
  std::string worker_id;
  std::uint64_t memory_bytes = 0;  // as in the placement
  PartPhase phase = PartPhase::kCommanded;
};

// What a plan takes over from its placement: who hosts what, and how the parts are connected.
void CopyPlacement(const v1::Placement& placement, v1::JobPlan* plan);

// The id of the plan of a job's placement (proto/support/plan_id.h).
std::string PlanId(const v1::Job& job);

class Plan {
 public:
  // `side_work` has is_side and the work set (plan and stage are filled in here). With `attached_from`, the side
  // network is there already as part of the plan of that id.
  Plan(v1::JobPlan plan, v1::HostPart side_work, std::string attached_from = "");

  const std::string& id() const { return plan_.plan_id(); }
  const v1::JobPlan& proto() const { return plan_; }
  const std::string& side_worker_id() const { return plan_.side_worker_id(); }
  std::vector<PlanPart>& parts() { return parts_; }
  // Null if the plan has no such part on that worker.
  PlanPart* Find(const std::string& worker_id, const v1::HostedPart& part);
  // The plan that the side network belongs to until it is attached to this one's stages; empty if it begins with it.
  const std::string& attached_from() const { return attached_from_; }
  // The command that makes a worker host this part, or its side network attach to the plan's stages.
  v1::WorkerCommand HostCommand(const PlanPart& part) const;
  // "stage 1, side network": what a worker hosts of it.
  std::string PartsOf(const std::string& worker_id) const;
  int NumReady() const;
  // Assigns all parts in the registry and sends the commands.
  void Start(WorkerRegistry* registry) const;
  // A worker that hosts a part and is away or lost; empty if none.
  std::string AwayWorker(const WorkerRegistry& registry) const;
  std::set<std::string> AwayWorkers(const WorkerRegistry& registry) const;

 private:
  v1::JobPlan plan_;
  v1::HostPart side_work_;
  std::string attached_from_;
  std::vector<PlanPart> parts_;
};

}  // namespace qst

#endif  // QST_SERVER_PLAN_H_
