// What the side network needs of a stored model: its dimensions, last norm and LM head.
#ifndef QST_WORKER_TRAIN_BACKBONE_HEAD_H_
#define QST_WORKER_TRAIN_BACKBONE_HEAD_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/side/head.h"
#include "worker/side/side_config.h"

namespace qst {

// kUnimplemented: a family without side layers.
absl::StatusOr<BackboneDims> BackboneDimsOf(const ModelConfig& config);

// The last norm, converted, and a view of the LM head in the model's mapping.
class BackboneHead {
 public:
  // `model` must outlive the result. Without an LM head (classification) its weight is left alone.
  static absl::StatusOr<std::unique_ptr<BackboneHead>> Load(const StoredModel& model, bool needs_lm_head);
  const FrozenHead& frozen() const { return frozen_; }

 private:
  BackboneHead() = default;
  std::vector<float> final_norm_;
  FrozenHead frozen_;
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_BACKBONE_HEAD_H_
