// The finetuned model: backbone and side network, one sequence continued token by token.
#ifndef QST_WORKER_INFER_SIDE_NEXT_STATE_H_
#define QST_WORKER_INFER_SIDE_NEXT_STATE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "worker/infer/next_state.h"
#include "worker/side/arena.h"
#include "worker/side/side_network.h"

namespace qst {

// Keeps the side layers' keys and values, so that a token costs one row of work in each layer.
class SideNextState : public NextState {
 public:
  // `ctx` is the context of all calls of Compute, on the network's device; what it points to and `network` must outlive
  // it. max_tokens: of the whole sequence. kFailedPrecondition: a side network that predicts classes, not tokens.
  // kResourceExhausted: no memory for keys and values.
  static absl::StatusOr<std::unique_ptr<SideNextState>> Create(const OpContext& ctx, const SideNetwork* network,
                                                               std::int64_t max_tokens);

  // What it takes of the device, the network itself not counted: keys and values, and the activations of a pass of all
  // max_tokens tokens.
  static std::int64_t EstimateBytes(const SideNetworkConfig& config, DeviceType device, std::int64_t max_tokens);

  std::int64_t first_layer() const override { return network_->config().first_layer(); }
  absl::Status Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                       const MatrixView& out) override;

 private:
  // The indices that the ops of one pass read, on the device.
  struct Indices {
    SequenceOffsets offsets;      // of the new tokens
    SequenceOffsets key_offsets;  // of all so far
    const std::int32_t* positions = nullptr;
    const std::int32_t* last_row = nullptr;
  };

  SideNextState(const OpContext& ctx, const SideNetwork* network, std::int64_t max_tokens)
      : network_(network), max_tokens_(max_tokens), arena_(ctx) {}
  absl::Status AllocateCaches(const OpContext& ctx);
  absl::StatusOr<Indices> UploadIndices(const OpContext& ctx, std::int64_t num_tokens);
  absl::Status RunLayers(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                         const Indices& indices, ConstMatrixView* hidden_last, MatrixView* side_last);

  const SideNetwork* const network_;
  const std::int64_t max_tokens_;
  std::int64_t past_ = 0;
  DeviceMemory cache_memory_;
  std::vector<SideKvCache> caches_;  // by layer - 1
  Arena arena_;                      // the last member: before the caches go, it waits for what is enqueued
};

}  // namespace qst

#endif  // QST_WORKER_INFER_SIDE_NEXT_STATE_H_
