// A trained side network on disk: side_network.safetensors (tensors under the authors' names, f32) beside
// side_config.json.
#ifndef QST_WORKER_TRAIN_RESULTS_H_
#define QST_WORKER_TRAIN_RESULTS_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "worker/side/side_network.h"

namespace qst {

inline constexpr char kSideNetworkFile[] = "side_network.safetensors";
inline constexpr char kSideConfigFile[] = "side_config.json";
inline constexpr char kMetricsFile[] = "metrics.jsonl";
inline constexpr char kPredictionsFile[] = "predictions.jsonl";

absl::Status SaveSideNetwork(const std::string& folder, const SideNetwork& network);

// side_config.json of a folder. kNotFound, kInvalidArgument.
absl::StatusOr<SideNetworkConfig> LoadSideConfig(const std::string& folder);

// The network of a folder, for evaluation or generation in `ctx` with the backbone that `frozen` is of.
// kFailedPrecondition: trained for a backbone of other dimensions than `backbone`. kDataLoss, kInvalidArgument: files
// damaged, tensors missing or of another shape.
absl::StatusOr<std::unique_ptr<SideNetwork>> LoadSideNetwork(const OpContext& ctx, const std::string& folder,
                                                             const BackboneDims& backbone, const FrozenHead& frozen);

}  // namespace qst

#endif  // QST_WORKER_TRAIN_RESULTS_H_
