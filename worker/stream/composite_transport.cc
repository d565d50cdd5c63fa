#include "worker/stream/composite_transport.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Listener = std::function<void(const absl::Status&)>;

// What the parts' listeners reach. They run on foreign threads, possibly while the transport is being destroyed.
struct Links {
  absl::Mutex mutex;
  Transport* local ABSL_GUARDED_BY(mutex) = nullptr;
  Transport* remote ABSL_GUARDED_BY(mutex) = nullptr;
  Listener listener ABSL_GUARDED_BY(mutex);
};

class CompositeTransport : public Transport {
 public:
  CompositeTransport(std::unique_ptr<Transport> local, std::unique_ptr<Transport> remote, std::vector<bool> is_local)
      : local_(std::move(local)),
        remote_(std::move(remote)),
        is_local_(std::move(is_local)),
        links_(std::make_shared<Links>()) {
    {
      absl::MutexLock lock(&links_->mutex);
      links_->local = local_.get();
      links_->remote = remote_.get();
    }
    const auto spread = [links = links_](bool from_local, const absl::Status& status) {
      Listener listener;
      {
        absl::MutexLock lock(&links->mutex);
        Transport* const other = from_local ? links->remote : links->local;
        if (other != nullptr) other->Abort(status);
        listener = std::move(links->listener);
        links->listener = nullptr;
      }
      if (listener) listener(status);
    };
    local_->OnFailure([spread](const absl::Status& status) { spread(true, status); });
    remote_->OnFailure([spread](const absl::Status& status) { spread(false, status); });
  }

  ~CompositeTransport() override {
    absl::MutexLock lock(&links_->mutex);
    links_->local = nullptr;
    links_->remote = nullptr;
    links_->listener = nullptr;
  }

  int rank() const override { return local_->rank(); }
  int world_size() const override { return local_->world_size(); }

  absl::Status Send(int peer, Tag tag, SharedBuffer buffer) override {
    QST_RETURN_IF_ERROR(Check(peer));
    return Part(peer).Send(peer, tag, std::move(buffer));
  }
  absl::StatusOr<std::unique_ptr<PendingReceive>> Receive(int peer, Tag tag, std::int64_t num_bytes) override {
    QST_RETURN_IF_ERROR(Check(peer));
    return Part(peer).Receive(peer, tag, num_bytes);
  }
  bool CarriesDeviceMemory(int peer) const override { return Check(peer).ok() && Part(peer).CarriesDeviceMemory(peer); }
  absl::StatusOr<std::unique_ptr<PendingReceive>> ReceiveOnDevice(int peer, Tag tag, std::int64_t num_bytes) override {
    QST_RETURN_IF_ERROR(Check(peer));
    return Part(peer).ReceiveOnDevice(peer, tag, num_bytes);
  }

  void KeepNoBuffers() override {
    remote_->KeepNoBuffers();
    local_->KeepNoBuffers();
  }
  void Abort(const absl::Status& reason) override {
    remote_->Abort(reason);
    local_->Abort(reason);
  }

  absl::Status Close(absl::Duration timeout, const std::string& note) override {
    const absl::Time deadline = absl::Now() + timeout;
    // Both say goodbye even if one of them waits in vain.
    const absl::Status remote = remote_->Close(timeout, note);
    const absl::Status local = local_->Close(std::max(absl::ZeroDuration(), deadline - absl::Now()), note);
    return remote.ok() ? local : remote;
  }

  std::vector<std::string> PeerNotes() const override {
    std::vector<std::string> notes = remote_->PeerNotes();
    const std::vector<std::string> local = local_->PeerNotes();
    for (std::size_t i = 0; i < notes.size(); ++i) {
      if (is_local_[i]) notes[i] = local[i];
    }
    return notes;
  }

  absl::Status status() const override {
    const absl::Status status = remote_->status();
    return status.ok() ? local_->status() : status;
  }

  void OnFailure(Listener listener) override {
    {
      absl::MutexLock lock(&links_->mutex);
      links_->listener = std::move(listener);
    }
    const absl::Status status = this->status();
    if (status.ok()) return;
    Listener late;
    {
      absl::MutexLock lock(&links_->mutex);
      late = std::move(links_->listener);
      links_->listener = nullptr;
    }
    if (late) late(status);
  }

 private:
  absl::Status Check(int peer) const {
    if (peer >= 0 && peer < static_cast<int>(is_local_.size())) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("no rank ", peer));
  }
  Transport& Part(int peer) const { return is_local_[peer] ? *local_ : *remote_; }

  std::unique_ptr<Transport> local_;
  std::unique_ptr<Transport> remote_;
  const std::vector<bool> is_local_;
  const std::shared_ptr<Links> links_;
};

}  // namespace

std::unique_ptr<Transport> MakeCompositeTransport(std::unique_ptr<Transport> local, std::unique_ptr<Transport> remote,
                                                  std::vector<bool> is_local) {
  return std::make_unique<CompositeTransport>(std::move(local), std::move(remote), std::move(is_local));
}

}  // namespace qst
