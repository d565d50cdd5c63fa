// Which worker hosts which layers of the backbone, and where the side network goes. Pure functions.
#ifndef QST_SERVER_PLACEMENT_H_
#define QST_SERVER_PLACEMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "proto/qst/v1/job_spec.pb.h"
#include "proto/qst/v1/resources.pb.h"
#include "server/memory_need.h"

namespace qst {

// A registered worker as placement sees it.
struct WorkerOffer {
  std::string id;
  v1::DeviceKind kind = v1::DEVICE_KIND_CPU;
  // Names the memory that its parts take. Workers of the same name share it: several on one GPU, those of one host on
  // CPU. "cuda:0 of host a".
  std::string device;
  // What parts may use of it; 0: unknown, nothing is refused.
  std::uint64_t memory_bytes = 0;
  // Of it, computed for the parts that this worker hosts.
  std::uint64_t used_bytes = 0;
  bool is_idle = false;
};

struct PlacementRequest {
  v1::ResourceConfig resources;  // has passed ValidateResources; stages beyond the model's layers count as that many
  v1::Model model;
  JobLoad load;
};

struct PlacementDecision {
  bool is_placed = false;
  v1::Placement placement;
  // Placed: "2 stages and the side network on 3 cpu workers over gloo". Else what it waits for: "waiting for 3 idle
  // cuda workers, 1 of 2 is idle".
  std::string message;
};

// Places a model over the idle ones of the registered workers, which come in order of preference. All parts go to
// workers of one kind. With resources.device auto that is CUDA where all registered CUDA workers together could host
// it, busy or idle, else CPU. No placement needs more memory than its workers have.
PlacementDecision Place(const PlacementRequest& request, const std::vector<WorkerOffer>& workers);

// "waiting for 3 idle workers, 2 registered (1 busy)": of any kind.
std::string WaitingMessage(std::uint32_t needed, std::uint32_t registered, std::uint32_t busy);

// "stage 0" or "side network": a part as people see it.
std::string PartName(bool is_side, std::uint32_t stage);

// "cpu" or "cuda".
absl::string_view DeviceKindName(v1::DeviceKind kind);

}  // namespace qst

#endif  // QST_SERVER_PLACEMENT_H_
