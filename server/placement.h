// Which worker hosts which layers of the backbone, and where the side network goes. Pure functions.
#ifndef QST_SERVER_PLACEMENT_H_
#define QST_SERVER_PLACEMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "proto/qst/v1/job_spec.pb.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

// Splits layers into `num_stages` contiguous runs, none empty: the dearest run is as cheap as can be and, among those
// splits, runs differ as little as can be (least sum of squares; the first such split).
//   layer_costs       one per layer, > 0, any unit
//   first_stage_cost  what the first stage pays besides its layers (the embedding)
//   num_stages        1 ... number of layers
// Returns the number of layers of each stage.
std::vector<std::uint32_t> SplitLayers(const std::vector<double>& layer_costs, double first_stage_cost,
                                       std::uint32_t num_stages);

struct PlacementDecision {
  bool placed = false;
  // If placed.
  v1::Placement placement;
  // If not: idle workers that it needs.
  std::uint32_t needed_workers = 0;
};

// Places a model over idle workers as ResourceConfig says. `idle_workers` are ids in order of preference.
// `resources` has passed ValidateResources; stages beyond the model's layers count as that many.
PlacementDecision Place(const v1::ResourceConfig& resources, const v1::Model& model,
                        const std::vector<std::string>& idle_workers);

// "waiting for 3 idle workers, 2 registered (1 busy)".
std::string WaitingMessage(std::uint32_t needed, std::uint32_t registered, std::uint32_t busy);

// "stage 0" or "side network": a part as people see it.
std::string PartName(bool is_side, std::uint32_t stage);

}  // namespace qst

#endif  // QST_SERVER_PLACEMENT_H_
