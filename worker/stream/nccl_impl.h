// Inside of NcclTransport: its edges, and the state that posting and waiting (nccl_transport.cc), connecting
// (nccl_connect.cc) and the engine (nccl_engine.cc) share.
#ifndef QST_WORKER_STREAM_NCCL_IMPL_H_
#define QST_WORKER_STREAM_NCCL_IMPL_H_

#include <nccl.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/cuda/device.h"
#include "worker/stream/nccl_library.h"
#include "worker/stream/nccl_transport.h"

namespace qst {

// A message that was sent or whose receive was posted.
struct NcclMessage {
  std::uint64_t index = 0;  // in its edge
  SharedBuffer buffer;
  bool is_done = false;  // guarded by Impl::mutex_
};
using SharedMessage = std::shared_ptr<NcclMessage>;

// One end of an edge.
struct NcclLink {
  NcclLink(int own_rank, int peer_rank, bool sends)
      : peer(peer_rank), is_sender(sends), rank_in_pair(own_rank < peer_rank ? 0 : 1) {}
  bool is_upward() const { return is_sender == (rank_in_pair == 0); }

  const int peer;
  const bool is_sender;
  const int rank_in_pair;

  // Of the engine; before it runs, of Connect.
  ncclComm_t comm = nullptr;
  cuda::StreamPtr stream;
  OpContext ctx;
  std::vector<SharedMessage> launching;
  std::deque<SharedMessage> enqueued;
  // Of a receiver: the sender's last words.
  std::unique_ptr<PendingReceive> end_notice;

  // Guarded by Impl::mutex_.
  std::deque<SharedMessage> queued;
  std::optional<Tag> last_tag;
  std::uint64_t num_posted = 0;
  std::uint64_t num_done = 0;
  // Of a receiver: how many messages there are in all, once that is known.
  std::uint64_t num_messages = std::numeric_limits<std::uint64_t>::max();
};

class NcclTransport::Impl {
 public:
  Impl(std::unique_ptr<Transport> control, NcclOptions options, const NcclLibrary* nccl);
  ~Impl();

  absl::Status Connect();
  std::string Describe() const;
  absl::Status Send(int peer, Tag tag, SharedBuffer buffer);
  absl::StatusOr<std::unique_ptr<PendingReceive>> Receive(int peer, Tag tag, std::int64_t num_bytes);
  bool CarriesDeviceMemory(int peer) const;
  absl::StatusOr<SharedBuffer> Wait(const NcclLink& link, const SharedMessage& message, absl::Duration timeout);
  void KeepNoBuffers() {
    control_->KeepNoBuffers();
    pool_->KeepNone();
  }
  void Fail(const absl::Status& reason, bool is_own);
  absl::Status Close(absl::Duration timeout, const std::string& note);
  absl::Status status() const;
  void OnFailure(std::function<void(const absl::Status&)> listener);
  Transport& control() { return *control_; }
  const Transport& control() const { return *control_; }

 private:
  enum class State { kConnecting, kOpen, kDraining, kClosed };
  // What control's listener reaches; it may run while the transport is being destroyed.
  struct FromControl {
    absl::Mutex mutex;
    Impl* impl ABSL_GUARDED_BY(mutex) = nullptr;
  };

  const std::string& name(int rank) const { return options_.names[rank]; }
  NcclLink* FindLink(int peer, bool is_sender) const;
  absl::StatusOr<SharedMessage> Post(NcclLink& link, std::optional<Tag> tag, SharedBuffer buffer);

  // nccl_connect.cc
  absl::Status ConnectLinks(absl::Time deadline);
  absl::Status ExchangeIds(absl::Time deadline, std::vector<ncclUniqueId>* ids);
  absl::Status AwaitReady(absl::Time deadline);
  absl::Status SendFirstMessages(absl::Time deadline);
  absl::Status DidNotConnect(const NcclLink& link) const;

  // nccl_engine.cc
  void RunEngine();
  // Takes each message one step further; whether any moved.
  absl::StatusOr<bool> Step(NcclLink& link);
  std::vector<SharedMessage> TakeQueued(NcclLink& link);
  absl::Status Launch(NcclLink& link, std::vector<SharedMessage> messages);
  void Finish(NcclLink& link, SharedMessage message);
  absl::Status CheckHealth(NcclLink& link);
  // False while a call is in progress.
  absl::StatusOr<bool> IsReady(const NcclLink& link) const;
  absl::Status ToStatus(const NcclLink& link, ncclResult_t result) const;
  void FailLink(const absl::Status& reason);
  // Ends all communicators: in order if nothing is left to do, else by force.
  void EndLinks(bool in_order);

  const std::unique_ptr<Transport> control_;
  const NcclOptions options_;
  const NcclLibrary& nccl_;
  const std::shared_ptr<BufferPool> pool_;
  const std::shared_ptr<FromControl> from_control_;
  // The vector is constant after construction.
  std::vector<std::unique_ptr<NcclLink>> links_;

  mutable absl::Mutex mutex_;
  absl::CondVar changed_;  // for those who wait for messages, states and failures
  absl::CondVar work_;     // for the engine
  State state_ ABSL_GUARDED_BY(mutex_) = State::kConnecting;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void(const absl::Status&)> listener_ ABSL_GUARDED_BY(mutex_);
  std::thread engine_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_NCCL_IMPL_H_
