// Ranks in different processes, each with a GPU of its own: hidden states go from GPU to GPU through NCCL.
#ifndef QST_WORKER_STREAM_NCCL_TRANSPORT_H_
#define QST_WORKER_STREAM_NCCL_TRANSPORT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device.h"
#include "worker/stream/transport.h"

namespace qst {

// A direction in which a GPU's memory travels.
struct NcclEdge {
  int from = 0;
  int to = 0;
};

// Those of a pipeline: each stage to the next one (residuals) and to the side network (hidden states).
inline std::vector<NcclEdge> PipelineEdges(int num_stages) {
  std::vector<NcclEdge> edges;
  for (int stage = 0; stage < num_stages; ++stage) {
    if (stage + 1 < num_stages) edges.push_back({stage, stage + 1});
    edges.push_back({stage, num_stages});
  }
  return edges;
}

struct NcclOptions {
  // names[rank] goes into messages.
  std::vector<std::string> names;
  // Edges that do not touch this rank are ignored. Both ends must list an edge.
  std::vector<NcclEdge> edges;
  // Of the GPU whose memory travels; the device must outlive the transport and all buffers.
  OpContext ctx;
  // Thread blocks that one edge may occupy while it works or waits for the peer. The side network's GPU has an edge
  // from each stage, and computes besides. More than a few help only where one edge alone has to fill NVLink.
  int max_blocks = 2;
  // For all peers to connect.
  absl::Duration connect_timeout = absl::Seconds(60);
};

// Messages from host memory (headers, tokens, last words) go through `control`, a transport that connects the same
// ranks; so its notice of a lost connection ends this one as well. Messages from the GPU's memory go through NCCL,
// layer by layer as they are ready.
//
// Every edge is a communicator of its own, of two ranks, in which one sends and the other receives. NCCL runs the
// operations of one communicator one after the other, so in a single one for all ranks a slow stage would hold up the
// states of a quick one, and two ranks that both send and receive could wait for each other.
//
// One thread (the engine) makes all calls of NCCL, none of which waits:
//
//   Send, ReceiveOnDevice ──▶ queue ──▶ launched ──▶ enqueued on the edge's stream ──▶ done: buffer let go, or handed
//   to
//                                    (group, polled)      (event polled)                       whoever waits for it
//
// It also asks the communicators for errors ten times a second. When something fails, it aborts all of them together,
// which ends what is enqueued; the wait for a dead peer is over as soon as `control` or NCCL notices.
//
// NCCL's environment variables (NCCL_SOCKET_IFNAME, NCCL_IB_HCA, NCCL_HOSTID, ...) work as ever. Its own memory is not
// in the device's budget: about 10 MB an edge and thread block.
class NcclTransport : public Transport {
 public:
  // kInvalidArgument: an edge outside the world. kUnimplemented: a build without CUDA. kFailedPrecondition: no GPU in
  // `ctx`, or no NCCL on this machine.
  static absl::StatusOr<std::unique_ptr<NcclTransport>> Create(std::unique_ptr<Transport> control, NcclOptions options);
  ~NcclTransport() override;

  // Connects all edges and sends a message over each; once, on a thread to which the GPU is current, before anything
  // else but Abort, which ends it early. kUnavailable names the peer that did not connect in time.
  absl::Status Connect();

  // "NCCL 2.28.9: from stage 0 on w1, to side network on w3".
  std::string Describe() const;

  int rank() const override;
  int world_size() const override;
  absl::Status Send(int peer, Tag tag, SharedBuffer buffer) override;
  absl::StatusOr<std::unique_ptr<PendingReceive>> Receive(int peer, Tag tag, std::int64_t num_bytes) override;
  // In both directions: there is an edge either way, and what goes the other way is refused (kInvalidArgument).
  bool CarriesDeviceMemory(int peer) const override;
  absl::StatusOr<std::unique_ptr<PendingReceive>> ReceiveOnDevice(int peer, Tag tag, std::int64_t num_bytes) override;
  void KeepNoBuffers() override;
  void Abort(const absl::Status& reason) override;
  absl::Status Close(absl::Duration timeout, const std::string& note) override;
  std::vector<std::string> PeerNotes() const override;
  absl::Status status() const override;
  void OnFailure(std::function<void(const absl::Status&)> listener) override;

 private:
  class Impl;
  explicit NcclTransport(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_NCCL_TRANSPORT_H_
