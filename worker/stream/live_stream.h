// Hidden states straight from the backbone stages, over a Transport.
#ifndef QST_WORKER_STREAM_LIVE_STREAM_H_
#define QST_WORKER_STREAM_LIVE_STREAM_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "worker/stream/hidden_state_stream.h"
#include "worker/stream/transport.h"

namespace qst {

// The layers [first_layer, first_layer + num_layers), counted from 0, of one stage.
struct StageRange {
  std::int64_t first_layer = 0;
  std::int64_t num_layers = 0;
};

struct LiveStreamOptions {
  // stages[i] is rank i; the side is rank stages.size(). Together they cover all layers in order.
  std::vector<StageRange> stages;
  std::int64_t hidden_size = 0;
  DType wire_dtype = DType::kBF16;  // any of kernels/wire_rows.h
  // Most passes that are submitted and not released.
  std::int64_t max_passes_in_flight = 2;
  // Most tokens of one pass.
  std::int64_t max_pass_tokens = 0;
  // Whose ops decode and read the states: they are given in its memory, and are its until Release. What it points to
  // must outlive the stream.
  OpContext ctx;
};

class LiveStream : public HiddenStateStream {
 public:
  // `transport` is the side's end and must outlive the stream. kInvalidArgument: stages with gaps, other world size.
  static absl::StatusOr<std::unique_ptr<LiveStream>> Create(Transport& transport, LiveStreamOptions options);
  ~LiveStream() override;

  std::int64_t num_layers() const override { return num_layers_; }
  std::int64_t hidden_size() const override { return options_.hidden_size; }

  // kInvalidArgument: pass out of order, empty, or above the limits. kFailedPrecondition: no credit left.
  absl::Status Submit(TokenPass pass, std::int64_t first_layer) override;
  absl::StatusOr<ConstMatrixView> Wait(std::uint64_t pass_id, std::int64_t layer) override;
  void Release(std::uint64_t pass_id) override;
  void Abort(const absl::Status& status) override { transport_.Abort(status); }

  // Gives up states that nobody has waited for yet, and their memory; nothing may be submitted afterwards. Those that
  // were given out stay, and may be waited for, until their pass is released or the stream ends.
  void DropPending();

  // Tells the stages that no pass follows; they end without error. Passes in flight are given up.
  absl::Status Finish();

  // Most bytes of hidden states that a stream with these options holds, if all layers from first_layer on are sent.
  static std::int64_t StateBytes(const LiveStreamOptions& options, std::int64_t first_layer, std::int64_t num_layers);

  // Time spent in Wait for states that were not there yet.
  absl::Duration waiting_time() const { return waiting_time_; }

 private:
  struct InFlight {
    std::uint64_t id = 0;
    std::int64_t num_tokens = 0;
    std::int64_t first_layer = 0;
    // Index: layer - first_layer.
    std::vector<std::unique_ptr<PendingReceive>> pending;
    std::vector<SharedBuffer> states;
  };

  LiveStream(Transport& transport, LiveStreamOptions options, std::int64_t num_layers);
  // Makes what has come readable for the side's ops.
  absl::StatusOr<SharedBuffer> Take(SharedBuffer buffer);
  // The same in bf16, of states that have a scale for each row.
  absl::StatusOr<SharedBuffer> Decode(SharedBuffer encoded, std::int64_t num_tokens);
  // What the side has enqueued is its last use of the states.
  void EndUse(InFlight& entry);
  // Rank of the stage that sends the states of a layer.
  int OwnerOf(std::int64_t layer) const { return owners_[static_cast<std::size_t>(layer)]; }

  Transport& transport_;
  const LiveStreamOptions options_;
  const std::int64_t num_layers_;
  const std::shared_ptr<BufferPool> pool_;         // headers and tokens
  const std::shared_ptr<BufferPool> states_pool_;  // states that are copied to a GPU or decoded
  std::vector<int> owners_;                        // [num_layers + 1]
  std::uint64_t next_id_ = 0;
  std::deque<InFlight> in_flight_;
  std::deque<std::unique_ptr<PendingReceive>> abandoned_;
  absl::Duration waiting_time_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_LIVE_STREAM_H_
