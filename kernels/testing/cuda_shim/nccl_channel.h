// The connection of the two ranks of a communicator: a socket, and what has come through it.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_NCCL_CHANNEL_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_NCCL_CHANNEL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace qst::cuda_shim {

// Thread-safe. A thread of its own takes in whatever comes, so that the other rank's writing ends, whatever this rank
// does.
class NcclChannel {
 public:
  enum class State { kConnecting, kConnected, kLost };

  // Begins to connect through the socket of that name (abstract namespace); rank 0 listens.
  NcclChannel(const std::string& name, int rank);
  ~NcclChannel() { Abort(); }
  NcclChannel(const NcclChannel&) = delete;
  NcclChannel& operator=(const NcclChannel&) = delete;

  // Ends everything: what waits for the peer is let through and does nothing. Returns when no message is being copied
  // any more.
  void Abort();

  State state();
  bool is_aborted() const { return is_aborted_; }
  bool peer_has_launched();
  // The peer ended in order: that its socket closes is no failure.
  bool peer_has_finalized();
  // The peer sent a message of another size than was received.
  bool has_wrong_size();

  void SayLaunched();
  void SayFinalized();

  // A receive has begun on this side: the peer may send.
  void GrantSend();
  bool MaySend();
  void Send(const void* bytes, std::size_t size);
  bool HasMessage();
  void Receive(void* bytes, std::size_t size);

 private:
  enum class Frame : std::uint64_t { kLaunched, kGrant, kMessage, kFinalized };

  void Run(const std::string& name, int rank);
  int Connect(const std::string& name, int rank);
  void ReadFrames(int socket);
  void Write(Frame frame, const void* bytes = nullptr, std::size_t size = 0);

  std::atomic<bool> is_aborted_{false};
  std::mutex copying_;  // held while a message goes between device memory and this object
  std::mutex writing_;  // one frame at a time
  std::mutex mutex_;    // what follows
  int socket_ = -1;
  State state_ = State::kConnecting;
  bool peer_has_launched_ = false;
  bool peer_has_finalized_ = false;
  bool has_wrong_size_ = false;
  std::int64_t num_grants_ = 0;
  std::deque<std::vector<unsigned char>> messages_;
  std::thread thread_;
};

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_NCCL_CHANNEL_H_
