// What a stored model gives to side network and generator: its dimensions, and the frozen last norm and head.
#ifndef QST_WORKER_HOST_FROZEN_H_
#define QST_WORKER_HOST_FROZEN_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/side/head.h"
#include "worker/side/side_config.h"

namespace qst {

BackboneDims DimsOf(const ModelConfig& config);

// Owns the norm's weight; the head's matrix lies in the model, which must outlive it. Not movable: views point inside.
class FrozenWeights {
 public:
  // needs_lm_head: false leaves it out (classification).
  static absl::StatusOr<std::unique_ptr<FrozenWeights>> Load(const StoredModel& model, bool needs_lm_head);

  const FrozenHead& head() const { return head_; }

 private:
  FrozenWeights() = default;
  std::vector<float> norm_;
  FrozenHead head_;
};

}  // namespace qst

#endif  // QST_WORKER_HOST_FROZEN_H_
