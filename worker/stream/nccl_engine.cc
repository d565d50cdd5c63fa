// The thread of an NcclTransport that makes all calls of NCCL once its edges are connected.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/status_macros.h"
#include "worker/stream/frame.h"
#include "worker/stream/nccl_impl.h"

namespace qst {
namespace {

// Messages of an edge that are with the GPU at a time. More would only fill the queues that its streams share.
constexpr std::size_t kMaxEnqueued = 8;
constexpr absl::Duration kHealthInterval = absl::Milliseconds(100);
// How often the GPU is asked while something is under way: at first at once, then with pauses that grow.
constexpr absl::Duration kSpin = absl::Microseconds(200);
constexpr absl::Duration kShortPause = absl::Microseconds(30);
constexpr absl::Duration kLongWait = absl::Milliseconds(10);
constexpr absl::Duration kLongPause = absl::Microseconds(250);
// How long a failure of NCCL waits for the peer's own reason to come by the other way.
constexpr absl::Duration kReasonGrace = absl::Seconds(1);
// For communicators to end in order.
constexpr absl::Duration kFinalizeTimeout = absl::Seconds(5);

absl::Duration PauseAfter(absl::Duration idle) {
  if (idle < kSpin) return absl::ZeroDuration();
  return idle < kLongWait ? kShortPause : kLongPause;
}

}  // namespace

absl::Status NcclTransport::Impl::ToStatus(const NcclLink& link, ncclResult_t result) const {
  if (result == ncclSuccess) return absl::OkStatus();
  const absl::string_view detail = nccl_.GetLastError(link.comm);
  const std::string message =
      absl::StrCat("NCCL, edge ", link.is_sender ? "to " : "from ", name(link.peer), ": ", nccl_.GetErrorString(result),
                   detail.empty() ? "" : " (", detail, detail.empty() ? "" : ")");
  return result == ncclRemoteError ? absl::UnavailableError(message) : absl::InternalError(message);
}

absl::StatusOr<bool> NcclTransport::Impl::IsReady(const NcclLink& link) const {
  ncclResult_t state = ncclSuccess;
  QST_RETURN_IF_ERROR(ToStatus(link, nccl_.CommGetAsyncError(link.comm, &state)));
  if (state == ncclInProgress) return false;
  QST_RETURN_IF_ERROR(ToStatus(link, state));
  return true;
}

void NcclTransport::Impl::RunEngine() {
  const absl::Status current = cuda::DeviceOf(*options_.ctx.stream).MakeCurrent();
  if (!current.ok()) Fail(current, /*is_own=*/false);
  absl::Time last_move = absl::Now();
  absl::Time next_check = last_move + kHealthInterval;
  bool is_draining = false;
  for (;;) {
    bool is_busy = false;
    absl::Status status;
    const absl::Time now = absl::Now();
    for (const std::unique_ptr<NcclLink>& link : links_) {
      const absl::StatusOr<bool> has_moved = Step(*link);
      status.Update(has_moved.status());
      if (has_moved.ok() && *has_moved) last_move = now;
      is_busy |= !link->launching.empty() || !link->enqueued.empty();
      if (now >= next_check && !is_draining) status.Update(CheckHealth(*link));
    }
    if (now >= next_check) next_check = now + kHealthInterval;
    if (!status.ok()) FailLink(status);

    absl::MutexLock lock(&mutex_);
    if (!status_.ok() || is_stopping_ || state_ == State::kClosed) break;
    // Peers may go now, each when it has done its part.
    is_draining = state_ == State::kDraining;
    const bool has_queued = std::any_of(links_.begin(), links_.end(), [](const std::unique_ptr<NcclLink>& link) {
      return !link->queued.empty() && link->launching.empty() && link->enqueued.size() < kMaxEnqueued;
    });
    if (has_queued) continue;
    work_.WaitWithTimeout(&mutex_, is_busy ? PauseAfter(now - last_move) : next_check - now);
  }
  bool in_order = false;
  {
    absl::MutexLock lock(&mutex_);
    in_order = status_.ok() && state_ == State::kClosed &&
               std::all_of(links_.begin(), links_.end(), [](const std::unique_ptr<NcclLink>& link) {
                 return link->queued.empty() && link->launching.empty() && link->enqueued.empty();
               });
  }
  EndLinks(in_order);
}

absl::StatusOr<bool> NcclTransport::Impl::Step(NcclLink& link) {
  bool has_moved = false;
  if (!link.launching.empty()) {
    QST_ASSIGN_OR_RETURN(const bool is_ready, IsReady(link));
    if (is_ready) {
      for (SharedMessage& message : link.launching) {
        QST_RETURN_IF_ERROR(message->buffer->EndUse(link.ctx));
        link.enqueued.push_back(std::move(message));
      }
      link.launching.clear();
      has_moved = true;
    }
  }
  while (!link.enqueued.empty()) {
    QST_ASSIGN_OR_RETURN(const bool is_done, link.enqueued.front()->buffer->IsLastUseDone());
    if (!is_done) break;
    SharedMessage message = std::move(link.enqueued.front());
    link.enqueued.pop_front();
    Finish(link, std::move(message));
    has_moved = true;
  }
  if (!link.launching.empty() || link.enqueued.size() >= kMaxEnqueued) return has_moved;
  std::vector<SharedMessage> messages = TakeQueued(link);
  if (messages.empty()) return has_moved;
  QST_RETURN_IF_ERROR(Launch(link, std::move(messages)));
  return true;
}

// A sender's messages that are ready together go as one group; the first goes in any case. Receives go one by one, so
// that each is done when its own message is there.
std::vector<SharedMessage> NcclTransport::Impl::TakeQueued(NcclLink& link) {
  std::vector<SharedMessage> messages;
  {
    absl::MutexLock lock(&mutex_);
    const std::size_t most = link.is_sender ? kMaxEnqueued - link.enqueued.size() : 1;
    messages.assign(link.queued.begin(), link.queued.begin() + std::min(most, link.queued.size()));
  }
  std::size_t count = std::min<std::size_t>(1, messages.size());
  while (count < messages.size() && messages[count]->buffer->IsLastUseDone().value_or(false)) ++count;
  messages.resize(count);
  absl::MutexLock lock(&mutex_);
  link.queued.erase(link.queued.begin(), link.queued.begin() + static_cast<std::ptrdiff_t>(count));
  return messages;
}

absl::Status NcclTransport::Impl::Launch(NcclLink& link, std::vector<SharedMessage> messages) {
  for (const SharedMessage& message : messages) QST_RETURN_IF_ERROR(message->buffer->BeginUse(link.ctx));
  link.launching = std::move(messages);
  const auto stream = static_cast<cudaStream_t>(cuda::NativeHandle(*link.stream));
  const int peer = 1 - link.rank_in_pair;
  ncclResult_t result = nccl_.GroupStart();
  for (const SharedMessage& message : link.launching) {
    // A message of nothing is there at once.
    if (result != ncclSuccess || message->buffer->size() == 0) continue;
    result = link.is_sender
                 ? nccl_.Send(message->buffer->data(), message->buffer->size(), ncclUint8, peer, link.comm, stream)
                 : nccl_.Recv(message->buffer->data(), message->buffer->size(), ncclUint8, peer, link.comm, stream);
    if (result == ncclInProgress) result = ncclSuccess;
  }
  const ncclResult_t end = nccl_.GroupEnd();
  if (result == ncclSuccess && end != ncclInProgress) result = end;
  return ToStatus(link, result);
}

void NcclTransport::Impl::Finish(NcclLink& link, SharedMessage message) {
  SharedBuffer sent;
  absl::MutexLock lock(&mutex_);
  message->is_done = true;
  ++link.num_done;
  if (link.is_sender) sent = std::move(message->buffer);
  changed_.SignalAll();
}

absl::Status NcclTransport::Impl::CheckHealth(NcclLink& link) {
  if (link.end_notice != nullptr) {
    const absl::StatusOr<SharedBuffer> end = link.end_notice->Wait(absl::ZeroDuration());
    if (end.ok()) {
      link.end_notice.reset();
      absl::MutexLock lock(&mutex_);
      std::memcpy(&link.num_messages, (*end)->data(), kNcclEndBytes);
      changed_.SignalAll();
    } else if (!absl::IsDeadlineExceeded(end.status())) {
      return end.status();
    }
  }
  // A sender that said its last words may go; what it has sent is here then.
  const bool has_ended = !link.is_sender && link.end_notice == nullptr;
  if (has_ended || !link.launching.empty()) return absl::OkStatus();
  return IsReady(link).status();
}

void NcclTransport::Impl::FailLink(const absl::Status& reason) {
  {
    const absl::Time deadline = absl::Now() + kReasonGrace;
    absl::MutexLock lock(&mutex_);
    while (status_.ok() && state_ != State::kClosed && !is_stopping_ && !work_.WaitWithDeadline(&mutex_, deadline)) {
    }
  }
  Fail(reason, /*is_own=*/false);
}

void NcclTransport::Impl::EndLinks(bool in_order) {
  const absl::Time deadline = absl::Now() + kFinalizeTimeout;
  if (in_order) {
    for (const std::unique_ptr<NcclLink>& link : links_) nccl_.CommFinalize(link->comm);
    for (const std::unique_ptr<NcclLink>& link : links_) {
      absl::StatusOr<bool> is_ready = IsReady(*link);
      while (is_ready.ok() && !*is_ready && absl::Now() < deadline) {
        absl::SleepFor(absl::Milliseconds(1));
        is_ready = IsReady(*link);
      }
      if (!is_ready.value_or(false)) continue;
      if (nccl_.CommDestroy(link->comm) == ncclSuccess) link->comm = nullptr;
    }
  }
  // Together: ending one frees memory, which waits for the kernels of all others on this GPU, and those of an edge
  // whose peer is gone end only when they are told to.
  nccl_.GroupStart();
  for (const std::unique_ptr<NcclLink>& link : links_) {
    if (link->comm != nullptr) nccl_.CommAbort(link->comm);
    link->comm = nullptr;
  }
  nccl_.GroupEnd();
  for (const std::unique_ptr<NcclLink>& link : links_) {
    link->launching.clear();
    link->enqueued.clear();
  }
}

}  // namespace qst
