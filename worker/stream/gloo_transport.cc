#include "worker/stream/gloo_transport.h"

#include <algorithm>
#include <stdexcept>

#include "absl/time/clock.h"
#include "proto/support/status_macros.h"
#include "worker/stream/frame.h"
#include "worker/stream/gloo_impl.h"

namespace qst {
namespace {

// Gloo adds it to a clock, so it must not be the largest number there is.
constexpr std::chrono::milliseconds kForever = std::chrono::hours(24 * 365);
// How long an operation that Gloo refused waits for the watcher to learn the peer's own reason.
constexpr absl::Duration kReasonGrace = absl::Seconds(1);
// How long the destructor lets last words travel.
constexpr absl::Duration kFlushGrace = absl::Milliseconds(500);

class GlooPendingReceive : public PendingReceive {
 public:
  using WaitFunction = std::function<absl::StatusOr<SharedBuffer>(absl::Duration)>;
  explicit GlooPendingReceive(WaitFunction wait) : wait_(std::move(wait)) {}
  absl::StatusOr<SharedBuffer> Wait(absl::Duration timeout) override { return wait_(timeout); }

 private:
  WaitFunction wait_;
};

}  // namespace

void GlooTransport::Impl::PostLastWords(int rank, GlooPeer& peer) {
  auto buffer = pool_->Get(kGoodbyeBytes);
  if (!buffer.ok()) throw std::bad_alloc();
  SharedOp op = MakeOp(*std::move(buffer));
  {
    absl::MutexLock lock(&mutex_);
    peer.last_words = op;
  }
  op->unbound->recv(rank, MakeTag(FrameKind::kGoodbye, 0));
}

absl::Status GlooTransport::Impl::Send(int peer, Tag tag, SharedBuffer buffer) {
  QST_RETURN_IF_ERROR(CheckOnHost(peer, buffer->is_on_device()));
  SharedOp op;
  {
    absl::MutexLock lock(&mutex_);
    QST_RETURN_IF_ERROR(CheckPeer(peer));
    op = MakeOp(std::move(buffer));
    peers_[peer].sends.push_back(op);
    changed_.SignalAll();
  }
  try {
    // Outside the lock: Gloo may hold the pair while it reads a large message.
    op->unbound->send(peer, tag);
  } catch (const std::exception& error) {
    return ReasonFor(peer, error);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PendingReceive>> GlooTransport::Impl::Receive(int peer, Tag tag,
                                                                             std::int64_t num_bytes) {
  QST_ASSIGN_OR_RETURN(SharedBuffer buffer, pool_->Get(num_bytes));
  SharedOp op;
  {
    absl::MutexLock lock(&mutex_);
    QST_RETURN_IF_ERROR(CheckPeer(peer));
    op = MakeOp(std::move(buffer));
    peers_[peer].receives.insert(op);
  }
  try {
    op->unbound->recv(peer, tag);
  } catch (const std::exception& error) {
    return ReasonFor(peer, error);
  }
  auto wait = [self = shared_from_this(), peer, op](absl::Duration timeout) { return self->Wait(peer, op, timeout); };
  return std::unique_ptr<PendingReceive>(std::make_unique<GlooPendingReceive>(std::move(wait)));
}

absl::StatusOr<SharedBuffer> GlooTransport::Impl::Wait(int peer, const SharedOp& op, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  bool is_done = false;
  while (!is_done) {
    {
      absl::MutexLock lock(&mutex_);
      QST_RETURN_IF_ERROR(status_);
      if (deadline != absl::InfiniteFuture()) {
        deadlines_[op] = deadline;
        changed_.SignalAll();
      }
    }
    std::string error;
    try {
      is_done = op->unbound->waitRecv(nullptr, kForever);
    } catch (const std::exception& thrown) {
      error = thrown.what();
    }
    {
      absl::MutexLock lock(&mutex_);
      deadlines_.erase(op);
    }
    if (!error.empty()) return ReasonFor(peer, std::runtime_error(error));
    if (is_done) break;
    QST_RETURN_IF_ERROR(status());
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("nothing from ", name(peer), " within ", absl::FormatDuration(timeout)));
    }
  }
  SharedBuffer buffer = std::move(op->buffer);
  absl::MutexLock lock(&mutex_);
  peers_[peer].receives.erase(op);
  return buffer;
}

absl::Status GlooTransport::Impl::ReasonFor(int peer, const std::exception& error) {
  {
    const absl::Time deadline = absl::Now() + kReasonGrace;
    absl::MutexLock lock(&mutex_);
    while (status_.ok() && !changed_.WaitWithDeadline(&mutex_, deadline)) {
    }
  }
  Fail(absl::UnavailableError(
      absl::StrCat("lost the connection to ", name(peer), " (", WithoutGlooSource(error.what()), ")")));
  return status();
}

void GlooTransport::Impl::Fail(const absl::Status& reason, bool is_own) {
  FailureListener listener;
  bool was_connecting = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok() || is_closed_) return;
    status_ = reason;
    listener = std::move(listener_);
    listener_ = nullptr;
    was_connecting = is_connecting_;
    // The flag stays set until somebody waits, so that a wait which begins right now ends as well.
    for (auto& [rank, peer] : peers_) {
      for (const SharedOp& op : peer.receives) op->unbound->abortWaitRecv();
    }
    changed_.SignalAll();
  }
  if (was_connecting) {
    // Ends the waiting for a connection, which has no other way out.
    for (int rank : options_.peers) {
      try {
        context_->getPair(rank)->close();
      } catch (const std::exception&) {
        // It is being torn down anyway.
      }
    }
  } else {
    SendGoodbye(reason, "");
  }
  if (listener && !is_own) listener(reason);
}

void GlooTransport::Impl::SendGoodbye(const absl::Status& reason, absl::string_view note) {
  for (auto& [rank, peer] : peers_) {
    auto buffer = pool_->Get(kGoodbyeBytes);
    if (!buffer.ok()) continue;
    EncodeGoodbye(reason, note, (*buffer)->data());
    SharedOp op = MakeOp(*std::move(buffer));
    {
      absl::MutexLock lock(&mutex_);
      if (!peer.is_connected || peer.is_gone) continue;
      peer.sends.push_back(op);
      changed_.SignalAll();
    }
    try {
      op->unbound->send(rank, MakeTag(FrameKind::kGoodbye, 0));
    } catch (const std::exception&) {
      // Its watcher sees the broken connection and says so.
    }
  }
}

void GlooTransport::Impl::Watch(int rank) {
  GlooPeer& peer = peers_[rank];
  for (;;) {
    SharedOp op;
    {
      absl::MutexLock lock(&mutex_);
      if (is_stopping_) return;
      op = peer.last_words;
    }
    std::string error;
    try {
      if (!op->unbound->waitRecv(nullptr, kForever)) continue;  // stopping
      absl::Status reason;
      std::string note;
      const absl::Status decoded = DecodeGoodbye(op->buffer->data(), name(rank), &reason, &note);
      if (!decoded.ok()) reason = decoded;
      if (!reason.ok()) {
        Fail(reason);
      } else {
        absl::MutexLock lock(&mutex_);
        peer.said_goodbye = true;
        peer.note = std::move(note);
        changed_.SignalAll();
      }
      PostLastWords(rank, peer);
      continue;
    } catch (const std::exception& thrown) {
      error = WithoutGlooSource(thrown.what());
    }
    bool is_expected = false;
    {
      absl::MutexLock lock(&mutex_);
      peer.is_gone = true;
      is_expected = peer.said_goodbye && (is_closed_ || peer.receives.empty());
      // Gloo forgets to tell an operation that was half way.
      for (const SharedOp& send : peer.sends) send->unbound->abortWaitSend();
      changed_.SignalAll();
    }
    if (!is_expected) {
      Fail(absl::UnavailableError(absl::StrCat("lost the connection to ", name(rank), " (", error, ")")));
    }
    return;
  }
}

void GlooTransport::Impl::Reap(int rank) {
  GlooPeer& peer = peers_[rank];
  for (;;) {
    SharedOp op;
    {
      absl::MutexLock lock(&mutex_);
      while (peer.sends.empty() && !is_stopping_) changed_.Wait(&mutex_);
      if (peer.sends.empty() || is_stopping_ || peer.is_gone) return;
      op = peer.sends.front();
    }
    bool is_sent = false;
    try {
      is_sent = op->unbound->waitSend(nullptr, kForever);
    } catch (const std::exception&) {
      // The watcher hears of it too.
    }
    absl::MutexLock lock(&mutex_);
    if (!is_sent) {
      // Unsent messages stay until the end: those behind them, last words among them, could not be sent otherwise.
      if (is_stopping_ || peer.is_gone) return;
      peer.is_gone = true;
      changed_.SignalAll();
      return;
    }
    peer.sends.pop_front();
    changed_.SignalAll();
  }
}

void GlooTransport::Impl::RunTimer() {
  absl::MutexLock lock(&mutex_);
  while (!is_stopping_) {
    absl::Time next = absl::InfiniteFuture();
    const absl::Time now = absl::Now();
    for (auto it = deadlines_.begin(); it != deadlines_.end();) {
      if (it->second <= now) {
        it->first->unbound->abortWaitRecv();
        it = deadlines_.erase(it);
      } else {
        next = std::min(next, it->second);
        ++it;
      }
    }
    changed_.WaitWithDeadline(&mutex_, next);
  }
}

std::vector<std::string> GlooTransport::Impl::PeerNotes() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> notes(options_.names.size());
  for (const auto& [rank, peer] : peers_) notes[rank] = peer.note;
  return notes;
}

absl::Status GlooTransport::Impl::Close(absl::Duration timeout, const std::string& note) {
  {
    absl::MutexLock lock(&mutex_);
    QST_RETURN_IF_ERROR(status_);
    is_closed_ = true;
  }
  SendGoodbye(absl::OkStatus(), note);
  const absl::Time deadline = absl::Now() + timeout;
  absl::MutexLock lock(&mutex_);
  for (auto& [rank, peer] : peers_) {
    while (peer.is_connected && !peer.is_gone && (!peer.said_goodbye || !peer.sends.empty())) {
      if (changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline) {
        return absl::DeadlineExceededError(
            absl::StrCat(name(rank), " said no goodbye within ", absl::FormatDuration(timeout)));
      }
    }
  }
  return absl::OkStatus();
}

void GlooTransport::Impl::Stop() {
  Fail(absl::UnavailableError("ended without a goodbye"), /*is_own=*/true);
  {
    const absl::Time deadline = absl::Now() + kFlushGrace;
    absl::MutexLock lock(&mutex_);
    for (auto& [rank, peer] : peers_) {
      while (peer.is_connected && !peer.is_gone && !peer.sends.empty() &&
             !changed_.WaitWithDeadline(&mutex_, deadline)) {
      }
    }
    is_stopping_ = true;
    for (auto& [rank, peer] : peers_) {
      if (peer.last_words != nullptr) peer.last_words->unbound->abortWaitRecv();
      for (const SharedOp& send : peer.sends) send->unbound->abortWaitSend();
      for (const SharedOp& receive : peer.receives) receive->unbound->abortWaitRecv();
    }
    changed_.SignalAll();
  }
  for (auto& [rank, peer] : peers_) {
    if (peer.watcher.joinable()) peer.watcher.join();
    if (peer.reaper.joinable()) peer.reaper.join();
  }
  if (timer_.joinable()) timer_.join();
}

void GlooTransport::Impl::OnFailure(FailureListener listener) {
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

absl::StatusOr<std::unique_ptr<GlooTransport>> GlooTransport::Create(GlooOptions options) {
  const int size = static_cast<int>(options.names.size());
  if (options.rank < 0 || options.rank >= size) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", options.rank, " of ", size));
  }
  for (int peer : options.peers) {
    if (peer < 0 || peer >= size || peer == options.rank) {
      return absl::InvalidArgumentError(absl::StrCat("rank ", options.rank, " cannot have peer ", peer, " of ", size));
    }
  }
  auto impl = std::make_shared<Impl>(std::move(options));
  QST_RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<GlooTransport>(new GlooTransport(std::move(impl)));
}

GlooTransport::~GlooTransport() { impl_->Stop(); }

absl::Status GlooTransport::Connect(KeyValueStore& store) { return impl_->Connect(store); }
int GlooTransport::rank() const { return impl_->options().rank; }
int GlooTransport::world_size() const { return static_cast<int>(impl_->options().names.size()); }
absl::Status GlooTransport::Send(int peer, Tag tag, SharedBuffer buffer) {
  return impl_->Send(peer, tag, std::move(buffer));
}
absl::StatusOr<std::unique_ptr<PendingReceive>> GlooTransport::Receive(int peer, Tag tag, std::int64_t num_bytes) {
  return impl_->Receive(peer, tag, num_bytes);
}
void GlooTransport::KeepNoBuffers() { impl_->KeepNoBuffers(); }

void GlooTransport::Abort(const absl::Status& reason) { impl_->Fail(reason, /*is_own=*/true); }
absl::Status GlooTransport::Close(absl::Duration timeout, const std::string& note) {
  return impl_->Close(timeout, note);
}
std::vector<std::string> GlooTransport::PeerNotes() const { return impl_->PeerNotes(); }
absl::Status GlooTransport::status() const { return impl_->status(); }
void GlooTransport::OnFailure(std::function<void(const absl::Status&)> listener) {
  impl_->OnFailure(std::move(listener));
}

}  // namespace qst
