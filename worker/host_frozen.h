// What a stored model gives to side network and generator: its dimensions, and the frozen last norm and head.
#ifndef QST_WORKER_HOST_FROZEN_H_
#define QST_WORKER_HOST_FROZEN_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "worker/backbone/device_weights.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/side/head.h"
#include "worker/side/side_config.h"

namespace qst {

BackboneDims DimsOf(const ModelConfig& config);

// Last norm, projection and the head's matrix where ops of a context read them. On CPU the matrices lie in the model,
// which must outlive them; on CUDA all are copies.
class FrozenWeights {
 public:
  // needs_lm_head: false leaves it out (classification). What `ctx` points to must outlive the weights.
  // kResourceExhausted: beyond the device's budget.
  static absl::StatusOr<std::unique_ptr<FrozenWeights>> Load(const OpContext& ctx, const StoredModel& model,
                                                             bool needs_lm_head);
  // Waits for enqueued work.
  ~FrozenWeights();
  FrozenWeights(const FrozenWeights&) = delete;
  FrozenWeights& operator=(const FrozenWeights&) = delete;

  const FrozenHead& head() const { return head_; }

 private:
  explicit FrozenWeights(const OpContext& ctx) : ctx_(ctx) {}
  // Nothing for an empty name.
  absl::Status AddVector(const StoredModel& model, const std::string& name, ConstMatrixView* view);

  const OpContext ctx_;
  DeviceWeights weights_;
  FrozenHead head_;
};

}  // namespace qst

#endif  // QST_WORKER_HOST_FROZEN_H_
