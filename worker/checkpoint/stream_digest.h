// Checksums of a file, made while it is written, and the check that what can be read is what was written.
#ifndef QST_WORKER_CHECKPOINT_STREAM_DIGEST_H_
#define QST_WORKER_CHECKPOINT_STREAM_DIGEST_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "worker/checkpoint/file_io.h"

namespace qst {

// Of a whole file. sha256 is for whoever gets the file. The sums of its pieces, kDigestPieceBytes each, are for reading
// it back at once: a sixth of the work, on all cores. They miss an accident with a chance of about 2^-64 for each
// piece. Not cryptographic: who could change the file between writing and reading could as well do it later.
struct FileDigest {
  std::string sha256;  // 64 lower-case digits
  std::vector<std::uint64_t> piece_sums;
  std::uint64_t num_bytes = 0;
};
inline constexpr std::size_t kDigestPieceBytes = 1 << 20;

// The sum of a piece.
std::uint64_t PieceSum(const void* data, std::size_t num_bytes);

// Computes the digest of a stream on a thread of its own, so that whoever writes the stream does not wait: it costs
// about as much as writing. Streams of one piece need no thread. Takes memory for a few pieces. Not thread-safe.
class StreamDigest {
 public:
  StreamDigest() = default;
  ~StreamDigest();
  StreamDigest(const StreamDigest&) = delete;
  StreamDigest& operator=(const StreamDigest&) = delete;

  // The next bytes, which are copied. Waits while the thread is some pieces behind.
  void Update(const void* data, std::size_t num_bytes);
  // Of all bytes so far; call once, and last.
  FileDigest Finish();

 private:
  using Piece = std::vector<std::uint8_t>;
  void AddPiece(const Piece& piece);
  void HandOver();
  void Run();

  Piece gathered_;  // less than a whole piece
  Sha256 sha256_;   // as digest_: of the thread, once it runs
  FileDigest digest_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> waiting_;  // guarded by mutex_, as the two below
  std::vector<Piece> free_;    // memory to use again
  bool is_over_ = false;
  std::thread thread_;
};

// Whether a file, read again, has the sums of the pieces that were written. Bad memory, a write that was lost, a file
// system that fails: all show here, as far as the system's cache, from which most of it is read, shows what is on the
// disk. kDataLoss names the first bytes that differ.
absl::Status CheckPieces(const MappedFile& file, const FileDigest& written, ThreadPool& threads);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_STREAM_DIGEST_H_
