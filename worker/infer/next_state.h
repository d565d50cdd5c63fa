// From a pass's hidden states to the state that the LM head is applied to.
#ifndef QST_WORKER_INFER_NEXT_STATE_H_
#define QST_WORKER_INFER_NEXT_STATE_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "kernels/tensor.h"
#include "worker/side/head.h"
#include "worker/side/side_network.h"

namespace qst {

// One sequence, continued pass by pass.
class NextState {
 public:
  virtual ~NextState() = default;
  // The first layer whose states Compute asks for.
  virtual std::int64_t first_layer() const = 0;
  // num_tokens more tokens of the sequence, whose states `source` gives layer by layer; out [1, e] is for the last one.
  // Enqueued; all matrices lie in the memory of ctx's device.
  virtual absl::Status Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                               const MatrixView& out) = 0;
};

// The model alone: its own last norm and projection.
class BackboneNextState : public NextState {
 public:
  // `frozen` must outlive it.
  BackboneNextState(const FrozenHead& frozen, std::int64_t num_layers) : frozen_(frozen), num_layers_(num_layers) {}
  std::int64_t first_layer() const override { return num_layers_; }
  absl::Status Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                       const MatrixView& out) override;

 private:
  const FrozenHead& frozen_;
  const std::int64_t num_layers_;
  DeviceMemory state_;  // [1, d], the last token's
};

}  // namespace qst

#endif  // QST_WORKER_INFER_NEXT_STATE_H_
