// Byte buffers that the data plane passes on, and the pool that reuses them.
#ifndef QST_WORKER_STREAM_BUFFER_H_
#define QST_WORKER_STREAM_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace qst {

// Bytes, aligned to 64. Whoever fills a buffer does so before handing it to a transport; from then on it belongs to
// the receiver (in process) or to nobody (over a network), and the sender keeps no use of it.
class Buffer {
 public:
  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }  // bytes

 private:
  friend class BufferPool;
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

using SharedBuffer = std::shared_ptr<Buffer>;

// Hands out buffers and takes them back when their last owner lets go, from any thread. The buffers may outlive the
// caller's pointer to the pool.
//
// Sizes differ a little from pass to pass. A request takes the smallest free buffer that fits without waste; when
// none does, one that has become too small is freed for the new one, so that there are never more buffers than were
// in use at once, and their sizes settle at the largest that was asked for.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  static std::shared_ptr<BufferPool> Create() { return std::shared_ptr<BufferPool>(new BufferPool); }
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // num_bytes >= 0; contents are undefined. kResourceExhausted: out of memory.
  absl::StatusOr<SharedBuffer> Get(std::int64_t num_bytes);

  // Bytes allocated now (in use and free), and the most there ever were.
  std::int64_t allocated_bytes() const;
  std::int64_t peak_bytes() const;

 private:
  BufferPool() = default;
  void Put(std::unique_ptr<Buffer> buffer);

  mutable absl::Mutex mutex_;
  std::vector<std::unique_ptr<Buffer>> free_ ABSL_GUARDED_BY(mutex_);
  std::int64_t allocated_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t peak_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_BUFFER_H_
