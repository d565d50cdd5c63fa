#include "worker/stream/nccl_transport.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "proto/support/status_macros.h"
#include "worker/stream/frame.h"
#include "worker/stream/nccl_impl.h"

namespace qst {
namespace {

class NcclPendingReceive : public PendingReceive {
 public:
  using WaitFunction = std::function<absl::StatusOr<SharedBuffer>(absl::Duration)>;
  explicit NcclPendingReceive(WaitFunction wait) : wait_(std::move(wait)) {}
  absl::StatusOr<SharedBuffer> Wait(absl::Duration timeout) override { return wait_(timeout); }

 private:
  WaitFunction wait_;
};

}  // namespace

NcclTransport::Impl::Impl(std::unique_ptr<Transport> control, NcclOptions options, const NcclLibrary* nccl)
    : control_(std::move(control)),
      options_(std::move(options)),
      nccl_(*nccl),
      pool_(BufferPool::Create(options_.ctx)),
      from_control_(std::make_shared<FromControl>()) {
  const int rank = control_->rank();
  for (const NcclEdge& edge : options_.edges) {
    if (edge.from == rank) links_.push_back(std::make_unique<NcclLink>(rank, edge.to, true));
    if (edge.to == rank) links_.push_back(std::make_unique<NcclLink>(rank, edge.from, false));
  }
  {
    absl::MutexLock lock(&from_control_->mutex);
    from_control_->impl = this;
  }
  control_->OnFailure([from_control = from_control_](const absl::Status& status) {
    absl::MutexLock lock(&from_control->mutex);
    if (from_control->impl != nullptr) from_control->impl->Fail(status, /*is_own=*/false);
  });
}

NcclTransport::Impl::~Impl() {
  {
    absl::MutexLock lock(&from_control_->mutex);
    from_control_->impl = nullptr;
  }
  Fail(absl::UnavailableError("ended without a goodbye"), /*is_own=*/true);
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
    work_.SignalAll();
  }
  if (engine_.joinable()) engine_.join();
}

NcclLink* NcclTransport::Impl::FindLink(int peer, bool is_sender) const {
  for (const std::unique_ptr<NcclLink>& link : links_) {
    if (link->peer == peer && link->is_sender == is_sender) return link.get();
  }
  return nullptr;
}

bool NcclTransport::Impl::CarriesDeviceMemory(int peer) const {
  return FindLink(peer, true) != nullptr || FindLink(peer, false) != nullptr;
}

std::string NcclTransport::Impl::Describe() const {
  const std::string edges = absl::StrJoin(links_, ", ", [this](std::string* out, const auto& link) {
    absl::StrAppend(out, link->is_sender ? "to " : "from ", name(link->peer));
  });
  return absl::StrCat("NCCL ", nccl_.version(), ": ", edges);
}

absl::StatusOr<SharedMessage> NcclTransport::Impl::Post(NcclLink& link, std::optional<Tag> tag, SharedBuffer buffer) {
  auto message = std::make_shared<NcclMessage>();
  message->buffer = std::move(buffer);
  absl::MutexLock lock(&mutex_);
  QST_RETURN_IF_ERROR(status_);
  if (tag.has_value()) {
    if (state_ == State::kConnecting) {
      return absl::FailedPreconditionError(absl::StrCat("not connected to ", name(link.peer), " yet"));
    }
    if (state_ != State::kOpen) return absl::FailedPreconditionError("the transport is closed");
    if (link.last_tag.has_value() && !IsInOrder(*link.last_tag, *tag)) {
      return absl::InvalidArgumentError(absl::StrCat("message ", absl::Hex(*tag), link.is_sender ? " to " : " from ",
                                                     name(link.peer), " after ", absl::Hex(*link.last_tag),
                                                     ": a GPU's memory travels by pass, then by layer"));
    }
    link.last_tag = tag;
  }
  message->index = link.num_posted++;
  link.queued.push_back(message);
  work_.SignalAll();
  return message;
}

absl::Status NcclTransport::Impl::Send(int peer, Tag tag, SharedBuffer buffer) {
  if (!buffer->is_on_device()) return control_->Send(peer, tag, std::move(buffer));
  NcclLink* const link = FindLink(peer, /*is_sender=*/true);
  if (link == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", control_->rank(), " has no NCCL edge to rank ", peer));
  }
  return Post(*link, tag, std::move(buffer)).status();
}

absl::StatusOr<std::unique_ptr<PendingReceive>> NcclTransport::Impl::Receive(int peer, Tag tag,
                                                                             std::int64_t num_bytes) {
  NcclLink* const link = FindLink(peer, /*is_sender=*/false);
  if (link == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", control_->rank(), " has no NCCL edge from rank ", peer));
  }
  QST_ASSIGN_OR_RETURN(SharedBuffer buffer, pool_->Get(num_bytes));
  QST_ASSIGN_OR_RETURN(SharedMessage message, Post(*link, tag, std::move(buffer)));
  return std::unique_ptr<PendingReceive>(std::make_unique<NcclPendingReceive>(
      [this, link, message = std::move(message)](absl::Duration timeout) { return Wait(*link, message, timeout); }));
}

absl::StatusOr<SharedBuffer> NcclTransport::Impl::Wait(const NcclLink& link, const SharedMessage& message,
                                                       absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  {
    absl::MutexLock lock(&mutex_);
    for (;;) {
      QST_RETURN_IF_ERROR(status_);
      if (message->is_done) return std::move(message->buffer);
      if (state_ == State::kClosed || message->index >= link.num_messages) break;
      if (changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline) {
        return absl::DeadlineExceededError(
            absl::StrCat("nothing from ", name(link.peer), " within ", absl::FormatDuration(timeout)));
      }
    }
  }
  const absl::Status left =
      absl::UnavailableError(absl::StrCat(name(link.peer), " left before it sent what was asked for"));
  Fail(left, /*is_own=*/false);
  absl::MutexLock lock(&mutex_);
  return status_.ok() ? left : status_;
}

void NcclTransport::Impl::Fail(const absl::Status& reason, bool is_own) {
  std::function<void(const absl::Status&)> listener;
  {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok() || state_ == State::kClosed) return;
    status_ = reason;
    listener = std::move(listener_);
    listener_ = nullptr;
    changed_.SignalAll();
    work_.SignalAll();
  }
  control_->Abort(reason);
  if (listener && !is_own) listener(reason);
}

absl::Status NcclTransport::Impl::Close(absl::Duration timeout, const std::string& note) {
  const absl::Time deadline = absl::Now() + timeout;
  {
    absl::MutexLock lock(&mutex_);
    QST_RETURN_IF_ERROR(status_);
    state_ = State::kDraining;
    for (const std::unique_ptr<NcclLink>& link : links_) {
      while (link->is_sender && link->num_done < link->num_posted) {
        const bool is_late = changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline;
        QST_RETURN_IF_ERROR(status_);
        if (is_late) {
          return absl::DeadlineExceededError(absl::StrCat(name(link->peer), " did not take ",
                                                          link->num_posted - link->num_done, " messages within ",
                                                          absl::FormatDuration(timeout)));
        }
      }
    }
  }
  for (const std::unique_ptr<NcclLink>& link : links_) {
    if (!link->is_sender) continue;
    QST_ASSIGN_OR_RETURN(SharedBuffer end, BufferPool::Create()->Get(kNcclEndBytes));
    {
      absl::MutexLock lock(&mutex_);
      std::memcpy(end->data(), &link->num_posted, kNcclEndBytes);
    }
    // A peer that has left already waits for nothing.
    control_->Send(link->peer, NcclEndTag(link->is_upward()), std::move(end)).IgnoreError();
  }
  const absl::Status closed = control_->Close(std::max(absl::ZeroDuration(), deadline - absl::Now()), note);
  absl::MutexLock lock(&mutex_);
  QST_RETURN_IF_ERROR(status_);
  // From now on a peer that goes is no failure.
  state_ = State::kClosed;
  changed_.SignalAll();
  work_.SignalAll();
  return closed;
}

absl::Status NcclTransport::Impl::status() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

void NcclTransport::Impl::OnFailure(std::function<void(const absl::Status&)> listener) {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    status = status_;
    if (status.ok()) {
      listener_ = std::move(listener);
      return;
    }
  }
  if (listener) listener(status);
}

absl::StatusOr<std::unique_ptr<NcclTransport>> NcclTransport::Create(std::unique_ptr<Transport> control,
                                                                     NcclOptions options) {
  const int size = control->world_size();
  if (static_cast<int>(options.names.size()) != size) {
    return absl::InvalidArgumentError(absl::StrCat(options.names.size(), " names for ", size, " ranks"));
  }
  for (const NcclEdge& edge : options.edges) {
    if (edge.from < 0 || edge.from >= size || edge.to < 0 || edge.to >= size || edge.from == edge.to) {
      return absl::InvalidArgumentError(
          absl::StrCat("there can be no NCCL edge from rank ", edge.from, " to rank ", edge.to, " of ", size));
    }
  }
  if (options.max_blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat("NCCL needs at least 1 thread block, not ", options.max_blocks));
  }
  if (options.ctx.device != DeviceType::kCuda || options.ctx.stream == nullptr) {
    return absl::FailedPreconditionError("NCCL carries the memory of GPUs, and this worker computes on its CPU");
  }
  QST_ASSIGN_OR_RETURN(const NcclLibrary* nccl, NcclLibrary::Get());
  return std::unique_ptr<NcclTransport>(
      new NcclTransport(std::make_unique<Impl>(std::move(control), std::move(options), nccl)));
}

NcclTransport::NcclTransport(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NcclTransport::~NcclTransport() = default;

absl::Status NcclTransport::Connect() { return impl_->Connect(); }
std::string NcclTransport::Describe() const { return impl_->Describe(); }
int NcclTransport::rank() const { return impl_->control().rank(); }
int NcclTransport::world_size() const { return impl_->control().world_size(); }
absl::Status NcclTransport::Send(int peer, Tag tag, SharedBuffer buffer) {
  return impl_->Send(peer, tag, std::move(buffer));
}
absl::StatusOr<std::unique_ptr<PendingReceive>> NcclTransport::Receive(int peer, Tag tag, std::int64_t num_bytes) {
  return impl_->control().Receive(peer, tag, num_bytes);
}
bool NcclTransport::CarriesDeviceMemory(int peer) const { return impl_->CarriesDeviceMemory(peer); }
absl::StatusOr<std::unique_ptr<PendingReceive>> NcclTransport::ReceiveOnDevice(int peer, Tag tag,
                                                                               std::int64_t num_bytes) {
  return impl_->Receive(peer, tag, num_bytes);
}
void NcclTransport::KeepNoBuffers() { impl_->KeepNoBuffers(); }

void NcclTransport::Abort(const absl::Status& reason) { impl_->Fail(reason, /*is_own=*/true); }
absl::Status NcclTransport::Close(absl::Duration timeout, const std::string& note) {
  return impl_->Close(timeout, note);
}
std::vector<std::string> NcclTransport::PeerNotes() const { return impl_->control().PeerNotes(); }
absl::Status NcclTransport::status() const { return impl_->status(); }
void NcclTransport::OnFailure(std::function<void(const absl::Status&)> listener) {
  impl_->OnFailure(std::move(listener));
}

}  // namespace qst
