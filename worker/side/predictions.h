// What a micro-batch was predicted to be, on its way from the device to the host.
#ifndef QST_WORKER_SIDE_PREDICTIONS_H_
#define QST_WORKER_SIDE_PREDICTIONS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "worker/side/arena.h"
#include "worker/side/head.h"

namespace qst {

// On the host, by target.
struct Predictions {
  std::vector<float> losses;            // [num] -log p(target), or the squared error
  std::vector<std::int32_t> predicted;  // [num] most probable token or class
  std::vector<float> probabilities;     // [num, C], classification without gradients only
  std::vector<float> values;            // [num], regression without gradients only
};

// Where the head writes them; memory of an arena.
class PredictionBuffer {
 public:
  // num_scores: columns of the logits that are kept; 0 keeps none. are_values: they are what a regression predicts. The
  // arena gives room for num_reserved targets, if those are more.
  absl::Status Allocate(std::int64_t num_targets, std::int64_t num_scores, bool are_values, std::int64_t num_reserved,
                        Arena* arena);
  // Forgets the memory, which goes back to the arena in the owner's own way.
  void Clear() { *this = PredictionBuffer(); }

  HeadOutputs outputs() const;
  // One copy to the host, which waits for it. Nothing if nothing was allocated. Probabilities are the softmax of each
  // row of logits, in float64.
  absl::StatusOr<Predictions> Fetch(const OpContext& ctx) const;

 private:
  float* memory_ = nullptr;  // logits [num, C], losses [num], predicted [num]
  std::int64_t num_targets_ = 0;
  std::int64_t num_scores_ = 0;
  bool are_values_ = false;
};

// Floats that Allocate takes from the arena.
std::int64_t PredictionFloats(std::int64_t num_targets, std::int64_t num_scores);

}  // namespace qst

#endif  // QST_WORKER_SIDE_PREDICTIONS_H_
