// Where the side network gets its hidden states from: live from the stages, or (later) from a cache.
#ifndef QST_WORKER_STREAM_HIDDEN_STATE_STREAM_H_
#define QST_WORKER_STREAM_HIDDEN_STATE_STREAM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "worker/stream/token_pass.h"

namespace qst {

// Hidden states of submitted passes, layer by layer. One thread submits, waits and releases; Abort may be called
// from any thread.
//
//   Submit(0) Submit(1) ... Wait(0, layer 0) ... Wait(0, layer N) Release(0) Submit(2) Wait(1, layer 0) ...
//
// The submitter keeps the number of unreleased passes at or below its limit: that is the credit which bounds how
// far the stages run ahead.
class HiddenStateStream {
 public:
  virtual ~HiddenStateStream() = default;

  // Number of layers N. States are numbered 0 (embedding) to N (last layer).
  virtual std::int64_t num_layers() const = 0;
  virtual std::int64_t hidden_size() const = 0;

  // Hands a pass to the stages and returns at once. Only layers in [first_layer, N] are sent to this side; 0 sends
  // all, N only the last (evaluation of the model alone, linear probe, generation without a side network).
  virtual absl::Status Submit(TokenPass pass, std::int64_t first_layer) = 0;

  // Blocks until h_f[layer] of the pass is here: [T, d], f32 if that is the stream's wire type, else bf16, in the
  // memory of the side's device, for what is enqueued there before Release. On a GPU "here" may mean promised: the
  // side's stream waits for it. kUnavailable: a stage was lost (message names it); kCancelled after Abort.
  virtual absl::StatusOr<ConstMatrixView> Wait(std::uint64_t pass_id, std::int64_t layer) = 0;

  // The pass's states are no longer needed by what will be enqueued. Passes are released in order.
  virtual void Release(std::uint64_t pass_id) = 0;

  // Wakes whoever waits; every later call returns `status`.
  virtual void Abort(const absl::Status& status) = 0;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_HIDDEN_STATE_STREAM_H_
