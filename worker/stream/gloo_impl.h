// Inside of GlooTransport: the state that its functions (gloo_transport.cc) and its beginning (gloo_connect.cc) share.
#ifndef QST_WORKER_STREAM_GLOO_IMPL_H_
#define QST_WORKER_STREAM_GLOO_IMPL_H_

#include <gloo/context.h>
#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "worker/stream/gloo_transport.h"

namespace qst {

using FailureListener = std::function<void(const absl::Status&)>;

// Gloo begins its messages with its own file and line.
std::string WithoutGlooSource(const std::string& what);

// A context whose pairs are only those that are needed: ranks of this very process have none.
class GlooMesh : public gloo::Context {
 public:
  GlooMesh(int rank, int size, std::shared_ptr<gloo::transport::Device> device, const std::vector<int>& peers,
           std::chrono::milliseconds timeout)
      : gloo::Context(rank, size) {
    transportContext_ = device->createContext(rank, size);
    transportContext_->setTimeout(timeout);
    for (int peer : peers) transportContext_->createPair(peer)->setLocalRank(0);
    device_ = std::move(device);
  }
};

// A message under way, kept until it is done or the transport ends: Gloo's pairs refer to it and stall when it goes.
struct GlooOp {
  SharedBuffer buffer;
  std::unique_ptr<gloo::transport::UnboundBuffer> unbound;
};
using SharedOp = std::shared_ptr<GlooOp>;

struct GlooPeer {
  bool is_connected = false;
  bool said_goodbye = false;
  bool is_gone = false;
  std::string note;
  std::deque<SharedOp> sends;
  std::set<SharedOp> receives;
  SharedOp last_words;  // the receive that is always posted
  std::thread watcher;
  std::thread reaper;
};

class GlooTransport::Impl : public std::enable_shared_from_this<Impl> {
 public:
  explicit Impl(GlooOptions options) : options_(std::move(options)), pool_(BufferPool::Create()) {}

  ~Impl() {
    // Operations first: their destructors wait until Gloo's thread is not inside them.
    for (auto& [rank, peer] : peers_) {
      peer.sends.clear();
      peer.receives.clear();
      peer.last_words.reset();
    }
    context_.reset();
  }

  absl::Status Listen();
  absl::Status Connect(KeyValueStore& store);
  absl::Status Send(int peer, Tag tag, SharedBuffer buffer);
  absl::StatusOr<std::unique_ptr<PendingReceive>> Receive(int peer, Tag tag, std::int64_t num_bytes);
  absl::StatusOr<SharedBuffer> Wait(int peer, const SharedOp& op, absl::Duration timeout);
  void KeepNoBuffers() { pool_->KeepNone(); }
  void Fail(const absl::Status& reason, bool is_own = false);
  absl::Status Close(absl::Duration timeout, const std::string& note);
  std::vector<std::string> PeerNotes() const;
  void Stop();
  void OnFailure(FailureListener listener);

  absl::Status status() const {
    absl::MutexLock lock(&mutex_);
    return status_;
  }
  const GlooOptions& options() const { return options_; }
  const std::string& name(int rank) const { return options_.names[rank]; }

 private:
  absl::Status CheckPeer(int peer) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!status_.ok()) return status_;
    if (is_closed_) return absl::FailedPreconditionError("the transport is closed");
    const auto it = peers_.find(peer);
    if (it == peers_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("rank ", options_.rank, " has no connection to rank ", peer));
    }
    if (!it->second.is_connected) {
      return absl::FailedPreconditionError(absl::StrCat("not connected to ", name(peer), " yet"));
    }
    return absl::OkStatus();
  }
  SharedOp MakeOp(SharedBuffer buffer) {
    auto op = std::make_shared<GlooOp>();
    op->unbound = context_->createUnboundBuffer(buffer->data(), buffer->size());
    op->buffer = std::move(buffer);
    return op;
  }
  absl::Status ConnectPeer(KeyValueStore& store, int rank, absl::Time deadline);
  // A failure that Gloo threw: the reason that the peer gave, if it gave one in time.
  absl::Status ReasonFor(int peer, const std::exception& error);
  void PostLastWords(int rank, GlooPeer& peer);
  void SendGoodbye(const absl::Status& reason, absl::string_view note);
  void Watch(int rank);
  void Reap(int rank);
  void RunTimer();

  const GlooOptions options_;
  const std::shared_ptr<BufferPool> pool_;
  std::shared_ptr<GlooMesh> context_;

  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool is_connecting_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  FailureListener listener_ ABSL_GUARDED_BY(mutex_);
  // The map itself is constant after Listen.
  std::map<int, GlooPeer> peers_;
  // Waits that end by themselves; few at a time.
  std::map<SharedOp, absl::Time> deadlines_ ABSL_GUARDED_BY(mutex_);
  std::thread timer_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_GLOO_IMPL_H_
