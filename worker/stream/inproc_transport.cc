#include "worker/stream/inproc_transport.h"

#include <map>
#include <tuple>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Listener = std::function<void(const absl::Status&)>;

// Messages of one sender, receiver and tag: the n-th sent meets the n-th receive posted.
struct Mailbox {
  std::uint64_t num_sent = 0;
  std::uint64_t num_posted = 0;
  std::map<std::uint64_t, SharedBuffer> arrived;
  std::map<std::uint64_t, bool> dropped;  // receives destroyed before their message came
};

struct Rank {
  bool is_taken = false;
  bool is_closed = false;
  absl::Status status;
  Listener listener;
  std::string note;
};

}  // namespace

struct InprocHub::State {
  using Key = std::tuple<int, int, Tag>;  // from, to, tag

  explicit State(std::vector<std::string> rank_names) : names(std::move(rank_names)), ranks(names.size()) {}

  const std::vector<std::string> names;
  absl::Mutex mutex;
  absl::CondVar changed;
  std::vector<Rank> ranks ABSL_GUARDED_BY(mutex);
  std::map<Key, Mailbox> mailboxes ABSL_GUARDED_BY(mutex);

  int size() const { return static_cast<int>(names.size()); }

  absl::Status CheckPeer(int rank, int peer) const {
    if (peer >= 0 && peer < size() && peer != rank) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank, " has no peer ", peer, "; there are ", size(), " ranks"));
  }

  // Boxes whose messages and receives all met are forgotten: tags are used once and would pile up.
  void ForgetIfDone(const Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const auto it = mailboxes.find(key);
    if (it == mailboxes.end()) return;
    const Mailbox& box = it->second;
    if (box.num_sent == box.num_posted && box.arrived.empty() && box.dropped.empty()) mailboxes.erase(it);
  }

  // Fails `rank` with reason and every other one with the same, naming it.
  void Fail(int rank, const absl::Status& reason) ABSL_LOCKS_EXCLUDED(mutex) {
    std::vector<std::pair<Listener, absl::Status>> calls;
    {
      absl::MutexLock lock(&mutex);
      if (!ranks[rank].status.ok()) return;
      const absl::Status at_peers = AsPeerReported(reason, names[rank]);
      for (int i = 0; i < size(); ++i) {
        Rank& r = ranks[i];
        if (!r.status.ok() || r.is_closed) continue;
        r.status = i == rank ? reason : at_peers;
        if (r.listener && i != rank) calls.emplace_back(std::move(r.listener), r.status);
        r.listener = nullptr;
      }
      changed.SignalAll();
    }
    for (const auto& [listener, status] : calls) listener(status);
  }
};

class InprocHub::Pending : public PendingReceive {
 public:
  Pending(std::shared_ptr<InprocHub> hub, State::Key key, std::uint64_t ticket, std::int64_t num_bytes)
      : hub_(std::move(hub)), key_(key), ticket_(ticket), num_bytes_(num_bytes) {}

  ~Pending() override {
    if (is_done_) return;
    State& s = *hub_->state_;
    SharedBuffer dropped;
    absl::MutexLock lock(&s.mutex);
    Mailbox& box = s.mailboxes[key_];
    const auto it = box.arrived.find(ticket_);
    if (it != box.arrived.end()) {
      dropped = std::move(it->second);
      box.arrived.erase(it);
    } else {
      box.dropped[ticket_] = true;
    }
    s.ForgetIfDone(key_);
  }

  absl::StatusOr<SharedBuffer> Wait(absl::Duration timeout) override {
    State& s = *hub_->state_;
    const int from = std::get<0>(key_);
    const int rank = std::get<1>(key_);
    const absl::Time deadline = absl::Now() + timeout;
    SharedBuffer buffer;
    {
      absl::MutexLock lock(&s.mutex);
      for (;;) {
        if (!s.ranks[rank].status.ok()) return s.ranks[rank].status;
        Mailbox& box = s.mailboxes[key_];
        const auto it = box.arrived.find(ticket_);
        if (it != box.arrived.end()) {
          buffer = std::move(it->second);
          box.arrived.erase(it);
          is_done_ = true;
          s.ForgetIfDone(key_);
          break;
        }
        if (s.ranks[from].is_closed) {
          return absl::UnavailableError(absl::StrCat(s.names[from], " left before it sent what was asked for"));
        }
        if (s.changed.WaitWithDeadline(&s.mutex, deadline) && absl::Now() >= deadline) {
          return absl::DeadlineExceededError(
              absl::StrCat("nothing from ", s.names[from], " within ", absl::FormatDuration(timeout)));
        }
      }
    }
    if (static_cast<std::int64_t>(buffer->size()) != num_bytes_) {
      const absl::Status status = absl::DataLossError(
          absl::StrCat(s.names[from], " sent ", buffer->size(), " bytes where ", num_bytes_, " were expected"));
      s.Fail(rank, status);
      return status;
    }
    return buffer;
  }

 private:
  const std::shared_ptr<InprocHub> hub_;
  const State::Key key_;
  const std::uint64_t ticket_;
  const std::int64_t num_bytes_;
  bool is_done_ = false;
};

class InprocHub::EndpointTransport : public Transport {
 public:
  EndpointTransport(std::shared_ptr<InprocHub> hub, int rank) : hub_(std::move(hub)), s_(*hub_->state_), rank_(rank) {}

  ~EndpointTransport() override {
    {
      absl::MutexLock lock(&s_.mutex);
      s_.ranks[rank_].listener = nullptr;
      if (s_.ranks[rank_].is_closed) return;
    }
    s_.Fail(rank_, absl::UnavailableError("ended without a goodbye"));
  }

  int rank() const override { return rank_; }
  int world_size() const override { return s_.size(); }

  absl::Status Send(int peer, Tag tag, SharedBuffer buffer) override {
    QST_RETURN_IF_ERROR(s_.CheckPeer(rank_, peer));
    absl::MutexLock lock(&s_.mutex);
    if (!s_.ranks[rank_].status.ok()) return s_.ranks[rank_].status;
    if (s_.ranks[rank_].is_closed) return absl::FailedPreconditionError("send after close");
    if (s_.ranks[peer].is_closed) return absl::UnavailableError(absl::StrCat(s_.names[peer], " has left"));
    const State::Key key(rank_, peer, tag);
    Mailbox& box = s_.mailboxes[key];
    const std::uint64_t ticket = box.num_sent++;
    if (box.dropped.erase(ticket) == 0) {
      box.arrived[ticket] = std::move(buffer);
    } else {
      s_.ForgetIfDone(key);
    }
    s_.changed.SignalAll();
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<PendingReceive>> Receive(int peer, Tag tag, std::int64_t num_bytes) override {
    QST_RETURN_IF_ERROR(s_.CheckPeer(rank_, peer));
    absl::MutexLock lock(&s_.mutex);
    if (!s_.ranks[rank_].status.ok()) return s_.ranks[rank_].status;
    const State::Key key(peer, rank_, tag);
    const std::uint64_t ticket = s_.mailboxes[key].num_posted++;
    return std::unique_ptr<PendingReceive>(std::make_unique<Pending>(hub_, key, ticket, num_bytes));
  }

  // One process has one device.
  bool CarriesDeviceMemory(int peer) const override { return s_.CheckPeer(rank_, peer).ok(); }
  absl::StatusOr<std::unique_ptr<PendingReceive>> ReceiveOnDevice(int peer, Tag tag, std::int64_t num_bytes) override {
    return Receive(peer, tag, num_bytes);
  }

  void Abort(const absl::Status& reason) override { s_.Fail(rank_, reason); }

  absl::Status Close(absl::Duration timeout, const std::string& note) override {
    const absl::Time deadline = absl::Now() + timeout;
    absl::MutexLock lock(&s_.mutex);
    Rank& own = s_.ranks[rank_];
    if (!own.status.ok()) return own.status;
    own.is_closed = true;
    own.note = note;
    s_.changed.SignalAll();
    for (int i = 0; i < s_.size(); ++i) {
      while (s_.ranks[i].is_taken && !s_.ranks[i].is_closed && s_.ranks[i].status.ok()) {
        if (s_.changed.WaitWithDeadline(&s_.mutex, deadline) && absl::Now() >= deadline) {
          return absl::DeadlineExceededError(
              absl::StrCat(s_.names[i], " said no goodbye within ", absl::FormatDuration(timeout)));
        }
      }
    }
    return absl::OkStatus();
  }

  std::vector<std::string> PeerNotes() const override {
    absl::MutexLock lock(&s_.mutex);
    std::vector<std::string> notes(s_.ranks.size());
    for (int i = 0; i < s_.size(); ++i) {
      if (i != rank_) notes[i] = s_.ranks[i].note;
    }
    return notes;
  }

  absl::Status status() const override {
    absl::MutexLock lock(&s_.mutex);
    return s_.ranks[rank_].status;
  }

  void OnFailure(Listener listener) override {
    absl::Status status;
    {
      absl::MutexLock lock(&s_.mutex);
      status = s_.ranks[rank_].status;
      if (status.ok()) {
        s_.ranks[rank_].listener = std::move(listener);
        return;
      }
    }
    if (listener) listener(status);
  }

 private:
  const std::shared_ptr<InprocHub> hub_;
  State& s_;
  const int rank_;
};

InprocHub::InprocHub(std::vector<std::string> names) : state_(std::make_unique<State>(std::move(names))) {}
InprocHub::~InprocHub() = default;

std::shared_ptr<InprocHub> InprocHub::Create(std::vector<std::string> names) {
  return std::shared_ptr<InprocHub>(new InprocHub(std::move(names)));
}

std::unique_ptr<Transport> InprocHub::Endpoint(int rank) {
  QST_CHECK(rank >= 0 && rank < state_->size());
  {
    absl::MutexLock lock(&state_->mutex);
    QST_CHECK(!state_->ranks[rank].is_taken);
    state_->ranks[rank].is_taken = true;
  }
  return std::make_unique<EndpointTransport>(shared_from_this(), rank);
}

}  // namespace qst
