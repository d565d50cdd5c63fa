// Next-token logits of one growing sequence, with the side network's own key-value cache.
#ifndef QST_WORKER_SIDE_SIDE_GENERATOR_H_
#define QST_WORKER_SIDE_SIDE_GENERATOR_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "worker/side/arena.h"
#include "worker/side/side_network.h"

namespace qst {

// Not thread-safe. Values are those that training computes for the same tokens.
class SideGenerator {
 public:
  // With a causal-LM side network, which must outlive the generator. max_tokens: room for prompt and answer.
  // kInvalidArgument: a classifier, or max_tokens below 1.
  static absl::StatusOr<std::unique_ptr<SideGenerator>> Create(const SideNetwork* network, std::int64_t max_tokens);
  // The untouched model: reads the last hidden state only.
  static absl::StatusOr<std::unique_ptr<SideGenerator>> CreateUntouched(const BackboneDims& backbone,
                                                                        const FrozenHead& frozen,
                                                                        std::int64_t max_tokens);

  // The first hidden state that Append asks for: 0, or N for the untouched model.
  std::int64_t first_layer() const { return network_ == nullptr ? config_.backbone.num_layers : 0; }
  std::int64_t num_tokens() const { return num_tokens_; }

  // Takes the hidden states of the next num_new tokens of the sequence and gives the logits [V] that follow the last
  // of them. kInvalidArgument: num_new below 1. kOutOfRange: more than max_tokens. Errors of the source; after an
  // error the sequence is as before.
  absl::Status Append(const OpContext& ctx, std::int64_t num_new, const HiddenStateSource& hidden_states,
                      std::vector<float>* logits);
  // Forgets the sequence.
  void Reset() { num_tokens_ = 0; }

  // Of the cache.
  std::int64_t cache_bytes() const { return static_cast<std::int64_t>(cache_.size() * sizeof(float)); }

 private:
  SideGenerator(const SideNetwork* network, SideNetworkConfig config, const FrozenHead& frozen,
                std::int64_t max_tokens);
  absl::Status RunLayers(const OpContext& ctx, std::int64_t num_new, const HiddenStateSource& hidden_states,
                         ConstMatrixView* backbone_last, ConstMatrixView* side_last);

  const SideNetwork* network_;  // null: untouched
  SideNetworkConfig config_;
  FrozenHead frozen_;
  HeadTensors head_;
  std::int64_t max_tokens_;
  std::vector<float> cache_;  // layer by layer: keys [max_tokens, kv], values [max_tokens, kv]
  std::int64_t num_tokens_ = 0;
  std::vector<std::int32_t> positions_;
  Arena arena_;
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_GENERATOR_H_
