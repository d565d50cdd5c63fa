// Hidden states from stages that may be lost and placed again: what they owe is asked for once more.
#ifndef QST_WORKER_STREAM_REPLAY_STREAM_H_
#define QST_WORKER_STREAM_REPLAY_STREAM_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/stream/hidden_state_stream.h"
#include "worker/stream/live_stream.h"

namespace qst {

// Whether a stream or transport ended because a peer went away or was taken away, not because something is wrong: the
// same passes may be asked of other stages.
bool IsStageLoss(const absl::Status& status);

// Stages are frozen and hold nothing of a pass, so a pass that is submitted again gives the same states, bit for bit:
//
//   Wait, Submit ──stage loss──▶ reconnect (blocks) ──▶ submit all unreleased passes again ──▶ go on where it was
//
// Views that Wait gave out before the loss stay valid until their pass is released: the lost stream is kept so long. Of
// the pass that is being read only the layers that were not read yet are asked for again, so that there are never more
// states than of the passes in flight.
// Not for passes that use a KV cache, which stages do keep.
class ReplayStream : public HiddenStateStream {
 public:
  // Blocks until there are stages again and gives a stream to them, whose first pass has id 0; what the stream stands
  // on lives as long as the pointer. `lost` is why the stream before is of no more use. A stage loss while connecting
  // makes it be called again; any other error ends the stream.
  using Reconnect = std::function<absl::StatusOr<std::shared_ptr<LiveStream>>(const absl::Status& lost)>;

  ReplayStream(std::shared_ptr<LiveStream> first, Reconnect reconnect);
  ~ReplayStream() override;

  std::int64_t num_layers() const override { return num_layers_; }
  std::int64_t hidden_size() const override { return hidden_size_; }

  absl::Status Submit(TokenPass pass, std::int64_t first_layer) override;
  absl::StatusOr<ConstMatrixView> Wait(std::uint64_t pass_id, std::int64_t layer) override;
  void Release(std::uint64_t pass_id) override;
  // Reaches the present stream; whoever waits in `reconnect` is the caller's to wake.
  void Abort(const absl::Status& status) override;

  // As LiveStream::Finish, of the present stages.
  absl::Status Finish();

  // How often stages were lost.
  std::int64_t num_replays() const { return num_replays_; }
  // Time spent in Wait for states that were not there yet; reconnecting is not in it.
  absl::Duration waiting_time() const;

 private:
  struct Submitted {
    TokenPass pass;
    std::int64_t first_layer = 0;
    // States of the layers from first_layer up to this one, exclusive, were read, each at some time after the one before.
    std::int64_t read_end = 0;
  };
  struct Generation {
    std::shared_ptr<LiveStream> stream;
    // Of the pass that is the stream's number 0.
    std::uint64_t first_id = 0;
    // Of that pass it has states from this layer on; generations before it have the others.
    std::int64_t first_layer = 0;
    // One more than the last pass of which it gave states.
    std::uint64_t end_id = 0;
  };

  Generation& current() { return generations_.back(); }
  // The one that has or will have the layer's states.
  Generation& GenerationOf(std::uint64_t pass_id, std::int64_t layer);
  absl::Status SubmitTo(Generation& generation, const Submitted& submitted);
  absl::Status Recover(absl::Status lost);
  absl::Status RecoverOnce(const absl::Status& lost);
  // Lets lost streams go that gave states of passes before this one only.
  void Forget(std::uint64_t first_needed_id);
  void Begin(std::shared_ptr<LiveStream> stream, std::uint64_t first_id, std::int64_t first_layer);

  const Reconnect reconnect_;
  const std::int64_t num_layers_;
  const std::int64_t hidden_size_;
  std::uint64_t next_id_ = 0;
  std::deque<Submitted> in_flight_;
  // The last one is in use; those before it hold states of passes that are not released.
  std::deque<Generation> generations_;
  // Not OK: no stages will come any more.
  absl::Status broken_;
  std::int64_t num_replays_ = 0;
  // Of generations that are gone.
  absl::Duration waiting_time_;

  absl::Mutex mutex_;
  // The present stream, for Abort, and what Abort said.
  std::shared_ptr<LiveStream> abortable_ ABSL_GUARDED_BY(mutex_);
  absl::Status aborted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_REPLAY_STREAM_H_
