#include "server/layer_split.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "proto/support/status_macros.h"

namespace qst {
namespace {

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

}  // namespace qst
