// How a model's layers are cut into pipeline stages.
#ifndef QST_SERVER_LAYER_SPLIT_H_
#define QST_SERVER_LAYER_SPLIT_H_

#include <cstdint>
#include <vector>

namespace qst {

// Splits layers into `num_stages` contiguous runs, none empty: the dearest run is as cheap as can be and, among those
// splits, runs differ as little as can be (least sum of squares; the first such split).
//   layer_costs       one per layer, > 0, any unit
//   first_stage_cost  what the first stage pays besides its layers (the embedding)
//   num_stages        1 ... number of layers
// Returns the number of layers of each stage.
std::vector<std::uint32_t> SplitLayers(const std::vector<double>& layer_costs, double first_stage_cost,
                                       std::uint32_t num_stages);

}  // namespace qst

#endif  // QST_SERVER_LAYER_SPLIT_H_
