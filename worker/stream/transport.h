// How the parts of one placement exchange bytes: the seam below which NCCL, Gloo and plain memory are equal.
#ifndef QST_WORKER_STREAM_TRANSPORT_H_
#define QST_WORKER_STREAM_TRANSPORT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "worker/stream/buffer.h"

namespace qst {

// Pairs a send with a receive between two ranks. The top byte 0xff belongs to the transports themselves.
using Tag = std::uint64_t;

// A receive that was posted. May be destroyed before it completed; the message is then dropped when it comes.
class PendingReceive {
 public:
  virtual ~PendingReceive() = default;

  // Blocks until the message is here and hands it over; call it once with success. kDeadlineExceeded: not yet, the
  // receive stays posted. Any other error: the transport has failed, see Transport.
  virtual absl::StatusOr<SharedBuffer> Wait(absl::Duration timeout) = 0;
};

// One rank's end of a communicator. Ranks 0 ... world_size - 1: backbone stage i is rank i, the side network (or
// generator) the last one. Thread-safe.
//
//           Close() ok
//   open ───────────────▶ closed
//     │ Abort(), a peer's failure, connection lost
//     ▼
//   failed: keeps the first reason; every wait, present and later, ends with it
//
// A communicator fails as a whole: each rank needs every other, so whoever waits for stage 0 learns at once that
// stage 1 is gone. Recovery is a new communicator. Errors, as status():
//   kUnavailable  the connection to a peer was lost; the message names the peer
//   any code      Abort's reason; at the peers the same code, the message preceded by the name of the rank that
//                 aborted, and IsPeerReported() true
// The destructor aborts unless closed; it never waits for peers longer than a moment.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Sends without blocking; keeps `buffer` alive until it is sent. In process, the receiver gets this very buffer.
  // Messages of the same pair and tag arrive in the order sent; different tags are independent.
  virtual absl::Status Send(int peer, Tag tag, SharedBuffer buffer) = 0;

  // Posts a receive of exactly num_bytes. Receives of one peer and tag are served in the order posted. A message of
  // another size is a broken protocol: the communicator fails (kDataLoss), or, where the library below can't
  // report it, the process ends. So sizes come from what both sides know, never from a guess.
  virtual absl::StatusOr<std::unique_ptr<PendingReceive>> Receive(int peer, Tag tag, std::int64_t num_bytes) = 0;

  // Whether buffers of a GPU's memory go to the peer and come from it as they are. If not, both ends copy through host
  // memory.
  virtual bool CarriesDeviceMemory(int peer) const;
  // Receive for a message that the peer sends from a GPU's memory: the buffer is this rank's device's. In process the
  // two are one. Elsewhere such messages keep an order of their own, whatever their tags: those of one sender and
  // receiver are matched as they were sent and posted, and both ends do that by pass, then by layer.
  // kUnimplemented: not to this peer. Send says the same of a device buffer.
  virtual absl::StatusOr<std::unique_ptr<PendingReceive>> ReceiveOnDevice(int peer, Tag tag, std::int64_t num_bytes);

  // No message will be received any more: memory of buffers that nobody has is given back, now and as they return.
  virtual void KeepNoBuffers() {}

  // Fails this rank with `reason` (not OK), tells the peers, wakes everyone who waits. Returns at once.
  virtual void Abort(const absl::Status& reason) = 0;

  // Says goodbye to the peers and waits until all of them did the same, for at most `timeout`
  // (kDeadlineExceeded). Nothing may be sent afterwards. `note`, up to 1000 bytes, is a line for the peers' logs.
  virtual absl::Status Close(absl::Duration timeout, const std::string& note) = 0;
  // What the peers noted when they said goodbye, by rank; empty where nothing.
  virtual std::vector<std::string> PeerNotes() const = 0;

  // OK while open or closed, else the first reason of failure.
  virtual absl::Status status() const = 0;

  // Called once when the communicator fails otherwise than by this rank's own Abort, from any thread; at once if it
  // has failed already. Null takes the listener away.
  virtual void OnFailure(std::function<void(const absl::Status&)> listener) = 0;
};

// For transports that carry host memory only: kUnimplemented if the message is of a GPU's memory.
absl::Status CheckOnHost(int peer, bool is_on_device);

// Whether the status tells of a failure that a peer reported about itself, so that this rank need not report it.
bool IsPeerReported(const absl::Status& status);
// `reason` as the peers of `name` see it; an empty name adds nothing.
absl::Status AsPeerReported(const absl::Status& reason, absl::string_view name);

}  // namespace qst

#endif  // QST_WORKER_STREAM_TRANSPORT_H_
