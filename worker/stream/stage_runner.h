// The loop of one backbone stage.
#ifndef QST_WORKER_STREAM_STAGE_RUNNER_H_
#define QST_WORKER_STREAM_STAGE_RUNNER_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device.h"
#include "worker/backbone/stage.h"
#include "worker/stream/device_timer.h"
#include "worker/stream/frame.h"
#include "worker/stream/transport.h"

namespace qst {

struct StageRunnerOptions {
  int num_stages = 1;
  // Of the whole backbone.
  std::int64_t num_layers = 0;
  DType wire_dtype = DType::kBF16;
  std::int64_t max_pass_tokens = 0;
  // As many as the side submits at most.
  std::int64_t max_passes_in_flight = 2;
  // Hidden states that were encoded and have not left yet; the stage waits beyond that, so that a slow network does not
  // fill a GPU's memory. Not for a side network in this process, which keeps states as long as it needs them. 0: no
  // limit.
  std::int64_t max_states_under_way = 0;
};

// Runs passes as they come until the side says stop:
//
//   side ── header, tokens ──▶ intake thread ──▶ queue ──▶ Run: residual in, Stage::Forward, residual out
//                                                              └─ each layer's states, encoded, to the side at once
//
// The intake reads ahead and posts the receive of the residual, so that the next pass arrives while this one is
// computed. The side's credits bound the queue.
// Rounding: the residual goes on in f32, unrounded; only the side's copy takes the wire type, in process as well.
//
// On a GPU everything is enqueued on the stage's stream: buffers are the device's, and go as they are to peers that
// take them so; for others they are copied through host memory, which waits for the device.
class StageRunner {
 public:
  struct Stats {
    std::int64_t num_passes = 0;
    std::int64_t num_tokens = 0;
    // In Stage::Forward without the sink, of the device.
    absl::Duration compute_time;
    // Of the host. With a GPU it runs ahead, and waits for the device only where it copies from it to send.
    absl::Duration send_time;     // encoding states and handing them to the transport
    absl::Duration waiting_time;  // for passes and residuals
  };

  // Rank i of `transport` is stage i. `ctx` is what the stage was made in. All three must outlive the runner.
  StageRunner(Stage& stage, Transport& transport, const OpContext& ctx, const StageRunnerOptions& options);
  ~StageRunner();
  StageRunner(const StageRunner&) = delete;
  StageRunner& operator=(const StageRunner&) = delete;

  // Blocks until the stream ends (OK) or fails. A failure of this stage aborts the transport, so that every peer
  // learns the reason. kDataLoss: a peer sent what the plan does not allow.
  absl::Status Run();

  const Stats& stats() const { return stats_; }  // after Run

 private:
  struct Work;
  struct Intake;

  absl::Status RunPass(Work& work);
  absl::Status Forward(Work& work, Buffer& residual);
  // The buffer, or a copy of it in the memory of ctx.
  absl::StatusOr<SharedBuffer> InDeviceMemory(SharedBuffer buffer);
  // Copies to the host's memory if the peer takes no other.
  absl::Status Send(int peer, Tag tag, SharedBuffer buffer);
  absl::Status AwaitRoomForStates();
  absl::Status SendStates(std::uint64_t pass_id, std::int64_t layer, const ConstMatrixView& states);

  Stage& stage_;
  Transport& transport_;
  const OpContext ctx_;
  const StageRunnerOptions options_;
  const int rank_;
  // Of the memory of ctx.
  const std::shared_ptr<BufferPool> residual_pool_;
  const std::shared_ptr<BufferPool> states_pool_;
  // For peers that take no other.
  const std::shared_ptr<BufferPool> host_pool_;
  DeviceTimer timer_;
  Stats stats_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_STAGE_RUNNER_H_
