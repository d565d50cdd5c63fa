// The finetuned model: backbone and side network, one sequence continued token by token.
#ifndef QST_WORKER_INFER_SIDE_NEXT_STATE_H_
#define QST_WORKER_INFER_SIDE_NEXT_STATE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/infer/next_state.h"
#include "worker/side/arena.h"
#include "worker/side/side_network.h"

namespace qst {

// Keeps the side layers' keys and values, so that a token costs one row of work in each layer.
class SideNextState : public NextState {
 public:
  // `network` must outlive it. max_tokens: of the whole sequence. kFailedPrecondition: a side network that predicts
  // classes, not tokens.
  static absl::StatusOr<std::unique_ptr<SideNextState>> Create(const SideNetwork* network, std::int64_t max_tokens);

  std::int64_t first_layer() const override { return network_->config().first_layer(); }
  absl::Status Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                       const MatrixView& out) override;

 private:
  SideNextState(const SideNetwork* network, std::int64_t max_tokens);

  const SideNetwork* const network_;
  const std::int64_t max_tokens_;
  std::int64_t past_ = 0;
  std::vector<float> cache_memory_;
  std::vector<SideKvCache> caches_;  // by layer - 1
  Arena arena_;
};

}  // namespace qst

#endif  // QST_WORKER_INFER_SIDE_NEXT_STATE_H_
