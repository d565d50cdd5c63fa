#include "worker/stream/stage_runner.h"

#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr absl::Duration kFailureCheckInterval = absl::Milliseconds(100);

}  // namespace

struct StageRunner::Work {
  TokenPass pass;
  std::int64_t first_layer = 0;
  // Null on the stage that embeds.
  std::unique_ptr<PendingReceive> residual;
};

// Receives passes ahead of the computation, on a thread of its own.
struct StageRunner::Intake {
  Transport& transport;
  const int side;
  const int previous;  // rank before this one, or -1
  const bool is_residual_on_device;
  const PassLimits limits;
  const std::int64_t max_queued;

  absl::Mutex mutex;
  absl::CondVar changed;
  std::deque<Work> queue ABSL_GUARDED_BY(mutex);
  bool is_over ABSL_GUARDED_BY(mutex) = false;
  bool is_ending ABSL_GUARDED_BY(mutex) = false;
  absl::Status status ABSL_GUARDED_BY(mutex);

  Intake(Transport& t, int side_rank, int previous_rank, bool is_cuda, const PassLimits& pass_limits,
         std::int64_t queued)
      : transport(t),
        side(side_rank),
        previous(previous_rank),
        is_residual_on_device(is_cuda && previous_rank >= 0 && t.CarriesDeviceMemory(previous_rank)),
        limits(pass_limits),
        max_queued(queued) {}

  absl::Status Receive() {
    QST_ASSIGN_OR_RETURN(auto next, transport.Receive(side, MakeTag(FrameKind::kHeader, 0), kHeaderBytes));
    for (std::uint64_t id = 0;; ++id) {
      QST_ASSIGN_OR_RETURN(SharedBuffer head, next->Wait(absl::InfiniteDuration()));
      QST_ASSIGN_OR_RETURN(const PassHeader header, DecodeHeader(head->data(), id, limits));
      head.reset();
      if (header.is_stop) return absl::OkStatus();
      QST_ASSIGN_OR_RETURN(next, transport.Receive(side, MakeTag(FrameKind::kHeader, id + 1), kHeaderBytes));

      Work work;
      work.first_layer = header.first_layer;
      if (previous >= 0) {
        const std::int64_t bytes = static_cast<std::int64_t>(header.num_tokens) * limits.hidden_size * 4;
        const Tag tag = MakeTag(FrameKind::kResidual, id);
        QST_ASSIGN_OR_RETURN(work.residual, is_residual_on_device ? transport.ReceiveOnDevice(previous, tag, bytes)
                                                                  : transport.Receive(previous, tag, bytes));
      }
      QST_ASSIGN_OR_RETURN(auto pending, transport.Receive(side, MakeTag(FrameKind::kTokens, id),
                                                           TokensBytes(header.num_tokens, header.num_sequences)));
      QST_ASSIGN_OR_RETURN(SharedBuffer tokens, pending->Wait(absl::InfiniteDuration()));
      QST_ASSIGN_OR_RETURN(work.pass, DecodeTokens(header, tokens->data()));

      absl::MutexLock lock(&mutex);
      // The credits keep it below that, unless the side gave up passes that are still queued here.
      while (static_cast<std::int64_t>(queue.size()) >= max_queued && !is_ending) changed.Wait(&mutex);
      if (is_ending) return absl::CancelledError("the stage has ended");
      queue.push_back(std::move(work));
      changed.SignalAll();
    }
  }

  void RunThread() {
    const absl::Status result = Receive();
    absl::MutexLock lock(&mutex);
    status = result;
    is_over = true;
    changed.SignalAll();
  }

  // The next pass; false at the end of the stream.
  absl::StatusOr<bool> Next(Work* work) {
    absl::MutexLock lock(&mutex);
    while (queue.empty() && !is_over) changed.Wait(&mutex);
    if (is_over && !status.ok()) return status;
    // A stop gives up what is queued: nobody waits for it.
    if (is_over) return false;
    *work = std::move(queue.front());
    queue.pop_front();
    changed.SignalAll();
    return true;
  }

  void End() {
    absl::MutexLock lock(&mutex);
    is_ending = true;
    changed.SignalAll();
  }
};

StageRunner::StageRunner(Stage& stage, Transport& transport, const OpContext& ctx, const StageRunnerOptions& options)
    : stage_(stage),
      transport_(transport),
      ctx_(ctx),
      options_(options),
      rank_(transport.rank()),
      residual_pool_(BufferPool::Create(ctx)),
      states_pool_(BufferPool::Create(ctx)),
      host_pool_(BufferPool::Create()),
      timer_(ctx) {}

StageRunner::~StageRunner() = default;

absl::StatusOr<SharedBuffer> StageRunner::InDeviceMemory(SharedBuffer buffer) {
  if (ctx_.device == DeviceType::kCpu || buffer->is_on_device()) return buffer;
  const std::int64_t bytes = static_cast<std::int64_t>(buffer->size());
  QST_ASSIGN_OR_RETURN(SharedBuffer on_device, residual_pool_->Get(bytes));
  QST_RETURN_IF_ERROR(on_device->BeginUse(ctx_));
  QST_RETURN_IF_ERROR(Upload(ctx_, buffer->data(), bytes, on_device->data()));
  QST_RETURN_IF_ERROR(on_device->EndUse(ctx_));
  return on_device;
}

absl::Status StageRunner::Send(int peer, Tag tag, SharedBuffer buffer) {
  if (buffer->is_on_device() && !transport_.CarriesDeviceMemory(peer)) {
    const std::int64_t bytes = static_cast<std::int64_t>(buffer->size());
    QST_ASSIGN_OR_RETURN(SharedBuffer on_host, host_pool_->Get(bytes));
    QST_RETURN_IF_ERROR(Download(ctx_, buffer->data(), bytes, on_host->data()));
    buffer = std::move(on_host);
  }
  return transport_.Send(peer, tag, std::move(buffer));
}

absl::Status StageRunner::AwaitRoomForStates() {
  if (options_.max_states_under_way == 0) return absl::OkStatus();
  while (!states_pool_->AwaitFewerInUse(options_.max_states_under_way, kFailureCheckInterval)) {
    // Of a communicator that failed nothing leaves any more.
    QST_RETURN_IF_ERROR(transport_.status());
  }
  return absl::OkStatus();
}

absl::Status StageRunner::SendStates(std::uint64_t pass_id, std::int64_t layer, const ConstMatrixView& states) {
  QST_RETURN_IF_ERROR(AwaitRoomForStates());
  const DType wire = LayerWireDtype(options_.wire_dtype, layer, options_.num_layers);
  QST_ASSIGN_OR_RETURN(SharedBuffer buffer, states_pool_->Get(WireBytes(wire, states.rows, states.cols)));
  QST_RETURN_IF_ERROR(buffer->BeginUse(ctx_));
  QST_RETURN_IF_ERROR(EncodeRows(ctx_, states, wire, buffer->data()));
  QST_RETURN_IF_ERROR(buffer->EndUse(ctx_));
  return Send(options_.num_stages, MakeTag(FrameKind::kHiddenStates, pass_id, layer), std::move(buffer));
}

absl::Status StageRunner::Forward(Work& work, Buffer& residual) {
  const std::int64_t num_tokens = work.pass.num_tokens();
  const std::int64_t width = stage_.hidden_size();
  const HiddenStateSink sink = [&](std::int64_t layer, const ConstMatrixView& states) -> absl::Status {
    if (layer < work.first_layer) return absl::OkStatus();
    if (states.rows != num_tokens || states.cols != width || states.dtype != DType::kF32) {
      return absl::InternalError(absl::StrCat("layer ", layer, " gave [", states.rows, ", ", states.cols, "] ",
                                              DTypeName(states.dtype), ", expected [", num_tokens, ", ", width,
                                              "] f32"));
    }
    QST_RETURN_IF_ERROR(timer_.End());
    const absl::Time start = absl::Now();
    QST_RETURN_IF_ERROR(SendStates(work.pass.id, layer, states));
    stats_.send_time += absl::Now() - start;
    return timer_.Begin();
  };
  QST_RETURN_IF_ERROR(residual.BeginUse(ctx_));
  const MatrixView view = Matrix(reinterpret_cast<float*>(residual.data()), num_tokens, width);
  absl::Status status = timer_.Begin();
  if (status.ok()) status = stage_.Forward(work.pass, view, sink);
  if (status.ok()) status = timer_.End();
  // Of a pass that failed half-way too: what was enqueued must be over before others get the buffer.
  status.Update(residual.EndUse(ctx_));
  return status;
}

absl::Status StageRunner::RunPass(Work& work) {
  const std::int64_t num_tokens = work.pass.num_tokens();
  SharedBuffer residual;
  if (work.residual != nullptr) {
    const absl::Time begin = absl::Now();
    QST_ASSIGN_OR_RETURN(residual, work.residual->Wait(absl::InfiniteDuration()));
    stats_.waiting_time += absl::Now() - begin;
    QST_ASSIGN_OR_RETURN(residual, InDeviceMemory(std::move(residual)));
  } else {
    QST_ASSIGN_OR_RETURN(residual, residual_pool_->Get(num_tokens * stage_.hidden_size() * 4));
  }
  QST_RETURN_IF_ERROR(Forward(work, *residual));
  stats_.num_passes += 1;
  stats_.num_tokens += num_tokens;
  if (rank_ + 1 == options_.num_stages) return absl::OkStatus();
  return Send(rank_ + 1, MakeTag(FrameKind::kResidual, work.pass.id), std::move(residual));
}

absl::Status StageRunner::Run() {
  PassLimits limits;
  limits.max_tokens = options_.max_pass_tokens;
  limits.num_layers = options_.num_layers;
  limits.hidden_size = stage_.hidden_size();
  limits.wire_dtype = options_.wire_dtype;
  Intake intake(transport_, options_.num_stages, rank_ - 1, ctx_.device == DeviceType::kCuda, limits,
                options_.max_passes_in_flight);
  std::thread thread([&intake] { intake.RunThread(); });

  absl::Status status;
  for (;;) {
    Work work;
    const absl::Time begin = absl::Now();
    absl::StatusOr<bool> has_next = intake.Next(&work);
    stats_.waiting_time += absl::Now() - begin;
    if (!has_next.ok()) {
      status = has_next.status();
      break;
    }
    if (!*has_next) break;
    status = Annotate(RunPass(work), absl::StrCat("pass ", work.pass.id));
    if (!status.ok()) break;
  }
  // A GPU may have failed after its work was enqueued.
  status.Update(Synchronize(ctx_));
  if (status.ok()) {
    const absl::StatusOr<absl::Duration> compute_time = timer_.Total();
    if (compute_time.ok()) stats_.compute_time = *compute_time;
    status = compute_time.status();
  }
  if (!status.ok()) {
    // A failure of the transport itself is known to it, with a better reason than what it caused here.
    const absl::Status transport_status = transport_.status();
    if (!transport_status.ok()) status = transport_status;
    transport_.Abort(status);
  }
  intake.End();
  thread.join();
  return status;
}

}  // namespace qst
