#include "server/stage_replacement.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace qst {
namespace {

// A need that may be why it waits.
constexpr std::uint64_t kWorthSaying = 100'000'000;
constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

class Replacer {
 public:
  Replacer(const ReplacementRequest& request, const std::vector<WorkerOffer>& workers)
      : request_(request), placement_(request.placement) {
    for (const v1::PlacedStage& stage : placement_.stages()) {
      if (!IsGone(stage)) members_.insert(stage.worker_id());
    }
    members_.insert(placement_.side_worker_id());
    for (const WorkerOffer& worker : workers) {
      if (worker.kind != placement_.device()) continue;
      workers_[worker.id] = worker;
      order_.push_back(worker.id);
      std::uint64_t& bytes = bytes_.emplace(worker.device, kUnlimited).first->second;
      if (worker.memory_bytes > 0) bytes = std::min(bytes, worker.memory_bytes);
      // Of members, what the placement says counts: they may have let go of their parts already.
      if (members_.count(worker.id) == 0) used_[worker.device] += worker.used_bytes;
    }
    for (const v1::PlacedStage& stage : placement_.stages()) {
      if (!IsGone(stage)) Take(stage.worker_id(), stage.memory_bytes());
    }
    Take(placement_.side_worker_id(), placement_.side_memory_bytes());
  }

  PlacementDecision Run() {
    PlacementDecision decision;
    std::vector<std::string> moves;
    for (int i = 0; i < placement_.stages_size(); ++i) {
      v1::PlacedStage* stage = placement_.mutable_stages(i);
      if (!IsGone(*stage)) continue;
      const std::optional<std::string> worker_id = Choose(i);
      if (!worker_id.has_value()) {
        decision.message = absl::StrCat(
            "waiting for an idle ", DeviceKindName(placement_.device()), " worker",
            stage->memory_bytes() >= kWorthSaying ? absl::StrFormat(" with %.1f GB", 1e-9 * stage->memory_bytes()) : "",
            " for ", PartName(false, stage->stage()));
        return decision;
      }
      instead_of_[stage->worker_id()] = *worker_id;
      Take(*worker_id, stage->memory_bytes());
      moved_.insert(i);
      stage->set_worker_id(*worker_id);
      moves.push_back(absl::StrCat(PartName(false, stage->stage()), " goes to worker ", *worker_id));
    }
    const bool is_one_process =
        std::all_of(placement_.stages().begin(), placement_.stages().end(),
                    [&](const v1::PlacedStage& stage) { return stage.worker_id() == placement_.side_worker_id(); });
    placement_.set_data_plane(is_one_process                                ? v1::DATA_PLANE_IN_PROCESS
                              : placement_.device() == v1::DEVICE_KIND_CUDA ? v1::DATA_PLANE_NCCL
                                                                            : v1::DATA_PLANE_GLOO);
    placement_.set_revision(placement_.revision() + 1);
    decision.is_placed = true;
    decision.placement = placement_;
    decision.message = moves.empty() ? "all stages stay where they are" : absl::StrJoin(moves, ", ");
    return decision;
  }

 private:
  bool IsGone(const v1::PlacedStage& stage) const {
    return moved_.count(static_cast<int>(stage.stage())) == 0 && request_.gone.count(stage.worker_id()) > 0;
  }

  void Take(const std::string& worker_id, std::uint64_t bytes) {
    const auto worker = workers_.find(worker_id);
    if (worker != workers_.end()) used_[worker->second.device] += bytes;
  }

  bool Fits(const std::string& worker_id, std::uint64_t bytes) const {
    const auto worker = workers_.find(worker_id);
    if (worker == workers_.end()) return false;
    const std::uint64_t all = bytes_.at(worker->second.device);
    const auto used = used_.find(worker->second.device);
    return all == kUnlimited || bytes + (used == used_.end() ? 0 : used->second) <= all;
  }

  std::optional<std::string> Choose(int index) const {
    const v1::PlacedStage& stage = placement_.stages(index);
    const auto fits = [&](const std::string& worker_id) { return Fits(worker_id, stage.memory_bytes()); };
    const auto sibling = instead_of_.find(stage.worker_id());
    if (sibling != instead_of_.end() && fits(sibling->second)) return sibling->second;
    for (const std::string& id : order_) {
      const bool is_taken =
          std::any_of(instead_of_.begin(), instead_of_.end(), [&](const auto& entry) { return entry.second == id; });
      if (workers_.at(id).is_idle && members_.count(id) == 0 && !is_taken && fits(id)) return id;
    }
    if (!request_.may_share) return std::nullopt;
    for (const int neighbour : {index - 1, index + 1}) {
      if (neighbour < 0 || neighbour >= placement_.stages_size() || IsGone(placement_.stages(neighbour))) continue;
      if (fits(placement_.stages(neighbour).worker_id())) return placement_.stages(neighbour).worker_id();
    }
    for (const std::string& id : order_) {
      if (members_.count(id) > 0 && fits(id)) return id;
    }
    return std::nullopt;
  }

  const ReplacementRequest& request_;
  v1::Placement placement_;
  // Workers that go on hosting something of the placement.
  std::set<std::string> members_;
  std::map<std::string, WorkerOffer> workers_;
  std::vector<std::string> order_;
  // By device.
  std::map<std::string, std::uint64_t> bytes_;
  std::map<std::string, std::uint64_t> used_;
  // Stages that have a new worker, and which worker came for which.
  std::set<int> moved_;
  std::map<std::string, std::string> instead_of_;
};

}  // namespace

PlacementDecision ReplaceStages(const ReplacementRequest& request, const std::vector<WorkerOffer>& workers) {
  return Replacer(request, workers).Run();
}

}  // namespace qst
