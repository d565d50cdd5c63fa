// Hidden states made up from the tokens, on the calling thread: a backbone's contract without a backbone.
#ifndef QST_WORKER_TRAIN_TESTING_FAKE_HIDDEN_STATE_STREAM_H_
#define QST_WORKER_TRAIN_TESTING_FAKE_HIDDEN_STATE_STREAM_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "worker/stream/hidden_state_stream.h"

namespace qst {

// h_f[layer] of a token depends on the token and the one before it in its sequence, on nothing else; bf16. Enforces
// the order and the credit that HiddenStateStream asks for.
class FakeHiddenStateStream : public HiddenStateStream {
 public:
  struct Options {
    // Whose ops read the states.
    OpContext ctx;
    std::int64_t num_layers = 2;
    std::int64_t hidden_size = 16;
    std::int64_t vocab_size = 23;
    std::int64_t max_passes_in_flight = 2;
    // A pass after which Wait fails with kUnavailable.
    std::optional<std::uint64_t> lost_at_pass;
    // A layer whose states are NaN from this pass on.
    std::optional<std::int64_t> nan_layer;
    std::uint64_t nan_from_pass = 0;
  };

  explicit FakeHiddenStateStream(const Options& options);

  std::int64_t num_layers() const override { return options_.num_layers; }
  std::int64_t hidden_size() const override { return options_.hidden_size; }
  absl::Status Submit(TokenPass pass, std::int64_t first_layer) override;
  absl::StatusOr<ConstMatrixView> Wait(std::uint64_t pass_id, std::int64_t layer) override;
  void Release(std::uint64_t pass_id) override;
  void Abort(const absl::Status& status) override { aborted_ = status; }

  // What the test looks at.
  std::size_t num_in_flight() const { return in_flight_.size(); }
  std::uint64_t num_submitted() const { return next_id_; }
  std::int64_t longest_pass_tokens() const { return longest_pass_tokens_; }
  std::int64_t lowest_layer_asked() const { return lowest_layer_asked_; }

 private:
  struct Pass {
    TokenPass tokens;
    std::int64_t first_layer = 0;
    std::vector<DeviceMemory> states;  // by layer; bf16
  };

  const Options options_;
  std::vector<std::vector<float>> tables_;  // by layer: [vocab, d]
  std::deque<Pass> in_flight_;
  std::uint64_t next_id_ = 0;
  std::int64_t longest_pass_tokens_ = 0;
  std::int64_t lowest_layer_asked_;
  absl::Status aborted_;
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_TESTING_FAKE_HIDDEN_STATE_STREAM_H_
