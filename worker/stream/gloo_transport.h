// Ranks in different processes, connected by TCP through Gloo.
#ifndef QST_WORKER_STREAM_GLOO_TRANSPORT_H_
#define QST_WORKER_STREAM_GLOO_TRANSPORT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/stream/key_value_store.h"
#include "worker/stream/transport.h"

namespace qst {

struct GlooOptions {
  int rank = 0;
  // names[rank] goes into messages; its size is the world's.
  std::vector<std::string> names;
  // Ranks to connect to: those of other processes. Each must list this rank in turn.
  std::vector<int> peers;
  // Address to listen at: a network interface if set, else a host name or IP address of this machine.
  std::string interface;
  std::string host = "127.0.0.1";
  // For all peers to appear and connect.
  absl::Duration connect_timeout = absl::Seconds(60);
};

// What Gloo (as of 2022-05) asks of its user, and how this class sees to it:
//   - a send is matched with a receive by slot, and one buffer has one operation: each message has its own unbound
//     buffer, and a thread per peer waits for sends, in order, and lets their memory go;
//   - a wait that times out closes all connections: waits never time out inside Gloo, a timer wakes them instead;
//   - an operation that is half way when its connection breaks is never told: a one-frame receive is kept posted for
//     every peer, which a broken connection does end. It also carries the peer's last words, FORMAT.md;
//   - a message longer than its receive ends the process (an exception in Gloo's own thread): sizes are settled by
//     the pass descriptor before anything is posted.
// Writing to a closed socket raises SIGPIPE: Create ignores that signal for the process.
class GlooTransport : public Transport {
 public:
  // Listens, but does not connect yet. kUnavailable: address not of this machine.
  static absl::StatusOr<std::unique_ptr<GlooTransport>> Create(GlooOptions options);
  ~GlooTransport() override;

  // Exchanges addresses through `store` and connects to every peer; once, before anything else but Abort, which ends
  // it early. kUnavailable names the peer that did not come. `store` is used during the call only.
  absl::Status Connect(KeyValueStore& store);

  int rank() const override;
  int world_size() const override;
  absl::Status Send(int peer, Tag tag, SharedBuffer buffer) override;
  absl::StatusOr<std::unique_ptr<PendingReceive>> Receive(int peer, Tag tag, std::int64_t num_bytes) override;
  void KeepNoBuffers() override;
  void Abort(const absl::Status& reason) override;
  absl::Status Close(absl::Duration timeout, const std::string& note) override;
  std::vector<std::string> PeerNotes() const override;
  absl::Status status() const override;
  void OnFailure(std::function<void(const absl::Status&)> listener) override;

 private:
  class Impl;
  explicit GlooTransport(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

  std::shared_ptr<Impl> impl_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_GLOO_TRANSPORT_H_
