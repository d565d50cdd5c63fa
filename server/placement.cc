#include "server/placement.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/layer_split.h"

namespace qst {
namespace {

// The embedding is one row copy per token: hardly any time beside a layer's matrix products. Just enough to give the
// first stage the smaller share where layers do not divide evenly.
constexpr double kEmbeddingCostInLayers = 0.05;
constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

std::string Gigabytes(std::uint64_t bytes) { return absl::StrFormat("%.1f GB", static_cast<double>(bytes) / 1e9); }

std::string CountWorkers(std::uint64_t count, v1::DeviceKind kind) {
  return absl::StrCat(count, " ", DeviceKindName(kind), count == 1 ? " worker" : " workers");
}

struct Shape {
  std::uint32_t stages = 1;
  std::uint32_t workers = 1;
};

// What ResourceConfig asks for where so many workers are available.
Shape ShapeFor(const v1::ResourceConfig& resources, std::uint32_t num_layers, std::uint32_t num_available) {
  Shape shape{resources.stages(), resources.workers()};
  if (shape.stages == 0) {
    const std::uint32_t available = shape.workers == 0 ? num_available : shape.workers;
    shape.stages = available > 1 ? available - 1 : 1;
  }
  shape.stages = std::min(shape.stages, num_layers);
  if (shape.workers == 0) shape.workers = (resources.stages() == 0 && num_available <= 1) ? 1 : shape.stages + 1;
  shape.workers = std::min(shape.workers, shape.stages + 1);
  return shape;
}

// Placement on the workers of one kind.
class Placer {
 public:
  struct Outcome {
    std::optional<v1::Placement> placement;
    std::uint32_t needed_workers = 0;
    // There are enough workers, and this is what their memory lacks.
    std::string shortage;
  };

  Placer(const PlacementRequest& request, v1::DeviceKind kind, const std::vector<WorkerOffer>& workers)
      : request_(request),
        kind_(kind),
        num_layers_(std::max<std::uint32_t>(1, request.model.num_layers())),
        need_(request.model, request.load, kind) {
    for (const WorkerOffer& worker : workers) {
      if (worker.kind == kind) workers_.push_back(worker);
    }
    for (const WorkerOffer& worker : workers_) {
      Memory& memory = devices_.emplace(worker.device, Memory{kUnlimited, 0}).first->second;
      if (worker.memory_bytes > 0) memory.bytes = std::min(memory.bytes, worker.memory_bytes);
      memory.used += worker.used_bytes;
    }
  }

  v1::DeviceKind kind() const { return kind_; }
  std::size_t num_registered() const { return workers_.size(); }
  std::size_t num_idle() const {
    return std::count_if(workers_.begin(), workers_.end(), [](const WorkerOffer& worker) { return worker.is_idle; });
  }

  // On idle workers, in the memory that is left; or as if all were idle and all memory free.
  Outcome Try(bool as_if_idle) const {
    std::vector<WorkerOffer> by_id;
    for (const WorkerOffer& worker : workers_) {
      if (as_if_idle || worker.is_idle) by_id.push_back(worker);
    }
    std::vector<WorkerOffer> by_memory = by_id;
    const auto left = [&](const WorkerOffer& worker) { return MemoryLeft(worker.device, as_if_idle); };
    std::stable_sort(by_memory.begin(), by_memory.end(),
                     [&](const WorkerOffer& a, const WorkerOffer& b) { return left(a) > left(b); });
    const std::uint32_t num_available = static_cast<std::uint32_t>(by_id.size());

    Outcome outcome = TryShape(ShapeFor(request_.resources, num_layers_, num_available), by_id, as_if_idle);
    if (outcome.placement.has_value() || outcome.shortage.empty()) return outcome;
    Outcome roomier = TryShape(ShapeFor(request_.resources, num_layers_, num_available), by_memory, as_if_idle);
    // Without the workers that have least memory, where the number of stages is free.
    for (std::uint32_t n = num_available - 1; n >= 1 && !roomier.placement.has_value(); --n) {
      if (request_.resources.stages() != 0 || request_.resources.workers() != 0) break;
      if (n > 1 && left(by_memory[n]) == left(by_memory[n - 1])) continue;
      Outcome smaller = TryShape(ShapeFor(request_.resources, num_layers_, n), by_memory, as_if_idle);
      if (smaller.placement.has_value()) roomier = std::move(smaller);
    }
    return roomier;
  }

  std::string Waiting(const Outcome& outcome) const {
    if (!outcome.shortage.empty()) {
      return absl::StrCat("waiting for ", DeviceKindName(kind_), " workers with more memory: ", outcome.shortage,
                          StagesHint());
    }
    const std::size_t idle = num_idle();
    return absl::StrCat("waiting for ", outcome.needed_workers, " idle ", DeviceKindName(kind_),
                        outcome.needed_workers == 1 ? " worker, " : " workers, ",
                        workers_.empty()
                            ? "none is registered"
                            : absl::StrCat(idle, " of ", workers_.size(), idle == 1 ? " is idle" : " are idle"));
  }

  // Why all workers of the kind together cannot host it.
  std::string Inability(const Outcome& ideal) const {
    if (!ideal.shortage.empty()) return ideal.shortage;
    return absl::StrCat("it needs ", ideal.needed_workers, ", ", workers_.size(),
                        workers_.size() == 1 ? " is registered" : " are registered");
  }

 private:
  struct Memory {
    std::uint64_t bytes;
    std::uint64_t used;
  };
  struct Demand {
    std::uint64_t bytes = 0;
    std::vector<std::string> parts;
  };

  std::uint64_t MemoryLeft(const std::string& device, bool as_if_idle) const {
    const Memory& memory = devices_.at(device);
    if (memory.bytes == kUnlimited || as_if_idle) return memory.bytes;
    return memory.bytes - std::min(memory.bytes, memory.used);
  }

  Outcome TryShape(const Shape& shape, const std::vector<WorkerOffer>& workers, bool as_if_idle) const {
    Outcome outcome;
    outcome.needed_workers = shape.workers;
    if (workers.size() < shape.workers) return outcome;
    v1::Placement placement = Lay(shape, workers);
    outcome.shortage = Shortage(placement, workers, as_if_idle);
    if (outcome.shortage.empty()) outcome.placement = std::move(placement);
    return outcome;
  }

  v1::Placement Lay(const Shape& shape, const std::vector<WorkerOffer>& workers) const {
    v1::Placement placement;
    const std::vector<std::uint32_t> sizes =
        SplitLayers(std::vector<double>(num_layers_, 1.0), kEmbeddingCostInLayers, shape.stages);
    // Workers that hold stages: all of them, unless one is the side network's alone.
    const std::uint32_t stage_workers = std::min(shape.workers, shape.stages);
    std::uint32_t first_layer = 0;
    for (std::uint32_t stage = 0; stage < shape.stages; ++stage) {
      v1::PlacedStage* placed = placement.add_stages();
      placed->set_stage(stage);
      // Neighbouring stages share a worker where there are fewer workers than stages.
      placed->set_worker_id(workers[static_cast<std::uint64_t>(stage) * stage_workers / shape.stages].id);
      placed->set_first_layer(first_layer);
      placed->set_num_layers(sizes[stage]);
      placed->set_memory_bytes(need_.StageBytes(first_layer, sizes[stage]));
      first_layer += sizes[stage];
    }
    placement.set_side_worker_id(workers[shape.workers - 1].id);
    placement.set_side_memory_bytes(need_.SideBytes());
    placement.set_device(kind_);
    if (shape.workers == 1) {
      placement.set_data_plane(v1::DATA_PLANE_IN_PROCESS);
    } else {
      placement.set_data_plane(kind_ == v1::DEVICE_KIND_CUDA ? v1::DATA_PLANE_NCCL : v1::DATA_PLANE_GLOO);
    }
    return placement;
  }

  // The first device whose memory the placement exceeds; empty if none.
  std::string Shortage(const v1::Placement& placement, const std::vector<WorkerOffer>& workers, bool as_if_idle) const {
    std::map<std::string, std::string> device_of;
    for (const WorkerOffer& worker : workers) device_of[worker.id] = worker.device;
    std::map<std::string, Demand> demands;
    for (const v1::PlacedStage& stage : placement.stages()) {
      Demand& demand = demands[device_of[stage.worker_id()]];
      demand.bytes += stage.memory_bytes();
      demand.parts.push_back(absl::StrCat(PartName(false, stage.stage()), " (layers ", stage.first_layer(), " to ",
                                          stage.first_layer() + stage.num_layers() - 1, ")"));
    }
    Demand& side = demands[device_of[placement.side_worker_id()]];
    side.bytes += placement.side_memory_bytes();
    side.parts.push_back(PartName(true, 0));
    for (const auto& [device, demand] : demands) {
      const std::uint64_t left = MemoryLeft(device, as_if_idle);
      if (demand.bytes <= left) continue;
      const std::uint64_t all = devices_.at(device).bytes;
      return absl::StrCat(absl::StrJoin(demand.parts, " and "), demand.parts.size() == 1 ? " needs " : " need ",
                          Gigabytes(demand.bytes), " of ", device, ", which has ", Gigabytes(left),
                          left < all ? absl::StrCat(" of its ", Gigabytes(all), " left") : "");
    }
    return "";
  }

  // What would make it fit: the fewest stages that each fit into the largest device alone, the side network too.
  std::string StagesHint() const {
    std::uint64_t largest = 0;
    for (const auto& [device, memory] : devices_) largest = std::max(largest, memory.bytes);
    const std::uint32_t wanted = request_.resources.stages();
    for (std::uint32_t stages = 1; stages <= num_layers_; ++stages) {
      const std::uint32_t least = num_layers_ / stages;
      const std::uint32_t most = (num_layers_ + stages - 1) / stages;
      if (std::max({need_.StageBytes(0, least), need_.StageBytes(1, most), need_.SideBytes()}) > largest) continue;
      if (wanted == 0 || stages > wanted) {
        return absl::StrCat("; with ", stages, stages == 1 ? " stage" : " stages", " on ",
                            CountWorkers(stages + 1, kind_), ", each with a device of its own, it fits");
      }
      return "";
    }
    return "; it fits with no number of stages";
  }

  const PlacementRequest& request_;
  const v1::DeviceKind kind_;
  const std::uint32_t num_layers_;
  const MemoryNeed need_;
  std::vector<WorkerOffer> workers_;
  std::map<std::string, Memory> devices_;
};

std::string PlacedMessage(const v1::Placement& placement) {
  std::set<std::string> workers = {placement.side_worker_id()};
  for (const v1::PlacedStage& stage : placement.stages()) workers.insert(stage.worker_id());
  const int stages = placement.stages_size();
  std::string message = absl::StrCat(stages, stages == 1 ? " stage" : " stages", " and the side network on ",
                                     CountWorkers(workers.size(), placement.device()));
  if (placement.data_plane() == v1::DATA_PLANE_GLOO) absl::StrAppend(&message, " over gloo");
  if (placement.data_plane() == v1::DATA_PLANE_NCCL) absl::StrAppend(&message, " over nccl");
  return message;
}

}  // namespace

PlacementDecision Place(const PlacementRequest& request, const std::vector<WorkerOffer>& workers) {
  const Placer cuda(request, v1::DEVICE_KIND_CUDA, workers);
  const Placer cpu(request, v1::DEVICE_KIND_CPU, workers);
  const v1::DeviceKind wanted = request.resources.device();
  const bool is_free = wanted != v1::DEVICE_KIND_CPU && wanted != v1::DEVICE_KIND_CUDA;
  PlacementDecision decision;
  if (is_free && workers.empty()) {
    decision.message = WaitingMessage(cpu.Try(false).needed_workers, 0, 0);
    return decision;
  }

  bool takes_cuda = wanted == v1::DEVICE_KIND_CUDA;
  std::string note;
  if (is_free && cuda.num_registered() > 0) {
    const Placer::Outcome ideal = cuda.Try(/*as_if_idle=*/true);
    // If neither kind can host it, it waits for more of what there is more of.
    takes_cuda = ideal.placement.has_value() ||
                 (!cpu.Try(/*as_if_idle=*/true).placement.has_value() && cuda.num_registered() >= cpu.num_registered());
    if (!takes_cuda) note = absl::StrCat(" (the cuda workers cannot host it: ", cuda.Inability(ideal), ")");
  }
  const Placer& chosen = takes_cuda ? cuda : cpu;
  const Placer& other = takes_cuda ? cpu : cuda;
  Placer::Outcome outcome = chosen.Try(/*as_if_idle=*/false);
  if (outcome.placement.has_value()) {
    decision.is_placed = true;
    decision.placement = *std::move(outcome.placement);
    decision.message = PlacedMessage(decision.placement) + note;
    return decision;
  }
  decision.message = chosen.Waiting(outcome) + note;
  const bool is_hopeless = !chosen.Try(/*as_if_idle=*/true).placement.has_value();
  if (!is_free && is_hopeless && other.Try(/*as_if_idle=*/false).placement.has_value()) {
    const std::size_t idle = other.num_idle();
    absl::StrAppend(&decision.message, "; ", CountWorkers(idle, other.kind()), idle == 1 ? " is" : " are",
                    " idle: set resources.device=", DeviceKindName(other.kind()), " to use ",
                    idle == 1 ? "it" : "them");
  }
  return decision;
}

std::string WaitingMessage(std::uint32_t needed, std::uint32_t registered, std::uint32_t busy) {
  std::string message = absl::StrCat("waiting for ", needed, needed == 1 ? " idle worker, " : " idle workers, ",
                                     registered, " registered");
  if (busy > 0) absl::StrAppend(&message, " (", busy, " busy)");
  return message;
}

std::string PartName(bool is_side, std::uint32_t stage) {
  return is_side ? "side network" : absl::StrCat("stage ", stage);
}

absl::string_view DeviceKindName(v1::DeviceKind kind) { return kind == v1::DEVICE_KIND_CUDA ? "cuda" : "cpu"; }

}  // namespace qst
