#include "server/placement.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// The embedding is one row copy per token: hardly any time beside a layer's matrix products. Just enough to give the
// first stage the smaller share where layers do not divide evenly.
constexpr double kEmbeddingCostInLayers = 0.05;

// best[s][i]: the least value of the first i layers in s + 1 stages; `combine` joins it with one more run.
template <typename Combine>
std::vector<std::vector<double>> SolveSplit(std::uint32_t num_stages, std::size_t num_layers, Combine combine,
                                            std::vector<std::vector<std::size_t>>* cuts) {
  const double infinity = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> best(num_stages, std::vector<double>(num_layers + 1, infinity));
  cuts->assign(num_stages, std::vector<std::size_t>(num_layers + 1, 0));
  for (std::size_t end = 1; end <= num_layers; ++end) best[0][end] = combine(0.0, 0, end);
  for (std::uint32_t stage = 1; stage < num_stages; ++stage) {
    for (std::size_t end = stage + 1; end <= num_layers; ++end) {
      for (std::size_t cut = stage; cut < end; ++cut) {
        const double value = combine(best[stage - 1][cut], cut, end);
        if (value < best[stage][end]) {
          best[stage][end] = value;
          (*cuts)[stage][end] = cut;
        }
      }
    }
  }
  return best;
}

}  // namespace

std::vector<std::uint32_t> SplitLayers(const std::vector<double>& layer_costs, double first_stage_cost,
                                       std::uint32_t num_stages) {
  const std::size_t num_layers = layer_costs.size();
  QST_CHECK(num_stages >= 1 && num_stages <= num_layers);
  std::vector<double> prefix(num_layers + 1, 0.0);
  for (std::size_t i = 0; i < num_layers; ++i) prefix[i + 1] = prefix[i] + layer_costs[i];
  const auto run_cost = [&](std::size_t begin, std::size_t end) {
    return prefix[end] - prefix[begin] + (begin == 0 ? first_stage_cost : 0.0);
  };

  std::vector<std::vector<std::size_t>> cuts;
  const auto dearest = SolveSplit(
      num_stages, num_layers,
      [&](double before, std::size_t begin, std::size_t end) { return std::max(before, run_cost(begin, end)); }, &cuts);
  // Sums of doubles in another order may differ in the last bits.
  const double limit = dearest[num_stages - 1][num_layers] * (1 + 1e-9);
  SolveSplit(
      num_stages, num_layers,
      [&](double before, std::size_t begin, std::size_t end) {
        const double cost = run_cost(begin, end);
        return cost > limit ? std::numeric_limits<double>::infinity() : before + cost * cost;
      },
      &cuts);

  std::vector<std::uint32_t> sizes(num_stages, 0);
  std::size_t end = num_layers;
  for (std::uint32_t stage = num_stages; stage-- > 0;) {
    const std::size_t begin = stage == 0 ? 0 : cuts[stage][end];
    sizes[stage] = static_cast<std::uint32_t>(end - begin);
    end = begin;
  }
  return sizes;
}

PlacementDecision Place(const v1::ResourceConfig& resources, const v1::Model& model,
                        const std::vector<std::string>& idle_workers) {
  const std::uint32_t num_layers = std::max<std::uint32_t>(1, model.num_layers());
  const std::uint32_t num_idle = static_cast<std::uint32_t>(idle_workers.size());
  std::uint32_t stages = resources.stages();
  std::uint32_t workers = resources.workers();
  if (stages == 0) {
    const std::uint32_t available = workers == 0 ? num_idle : workers;
    stages = available > 1 ? available - 1 : 1;
  }
  stages = std::min(stages, num_layers);
  if (workers == 0) workers = (resources.stages() == 0 && num_idle <= 1) ? 1 : stages + 1;
  workers = std::min(workers, stages + 1);

  PlacementDecision decision;
  decision.needed_workers = workers;
  if (num_idle < workers) return decision;

  decision.placed = true;
  const std::vector<std::uint32_t> sizes =
      SplitLayers(std::vector<double>(num_layers, 1.0), kEmbeddingCostInLayers, stages);
  // Workers that hold stages: all of them, unless one is the side network's alone.
  const std::uint32_t stage_workers = std::min(workers, stages);
  std::uint32_t first_layer = 0;
  for (std::uint32_t stage = 0; stage < stages; ++stage) {
    v1::PlacedStage* placed = decision.placement.add_stages();
    placed->set_stage(stage);
    // Neighbouring stages share a worker where there are fewer workers than stages.
    placed->set_worker_id(idle_workers[static_cast<std::uint64_t>(stage) * stage_workers / stages]);
    placed->set_first_layer(first_layer);
    placed->set_num_layers(sizes[stage]);
    first_layer += sizes[stage];
  }
  decision.placement.set_side_worker_id(idle_workers[workers - 1]);
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

}  // namespace qst
