// Byte buffers that the data plane passes on, and the pool that reuses them.
#ifndef QST_WORKER_STREAM_BUFFER_H_
#define QST_WORKER_STREAM_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"

namespace qst {

// Bytes of the host or of a GPU, aligned to 64. Whoever fills a buffer does so before handing it to a transport; from
// then on it belongs to the receiver (in process) or to nobody (over a network), and the sender keeps no use of it.
//
// A GPU works later than the host asks: between BeginUse and EndUse a user enqueues whatever reads or writes the bytes,
// and its work begins after that of the user before, on whichever stream that was; also when the buffer has been
// through the pool in between. Users follow each other, never two at a time. On the host both calls do nothing.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::uint8_t* data() { return memory_.as<std::uint8_t>(); }
  const std::uint8_t* data() const { return memory_.as<std::uint8_t>(); }
  std::size_t size() const { return size_; }  // bytes
  // Whether data() is a GPU's memory, which the host cannot read.
  bool is_on_device() const { return is_on_device_; }

  absl::Status BeginUse(const OpContext& ctx) const;
  absl::Status EndUse(const OpContext& ctx);
  // Holds up the host until the last user's work is done.
  absl::Status WaitForLastUse() const;
  // Whether it is, without waiting.
  absl::StatusOr<bool> IsLastUseDone() const;

 private:
  friend class BufferPool;
  std::size_t capacity() const { return static_cast<std::size_t>(memory_.size_bytes()); }

  DeviceMemory memory_;
  std::size_t size_ = 0;
  bool is_on_device_ = false;
  std::optional<DeviceEvent> last_use_;
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
  // Of the host's memory.
  static std::shared_ptr<BufferPool> Create() { return Create(OpContext()); }
  // Of the memory that ops in this context work on; its device must outlive all buffers.
  static std::shared_ptr<BufferPool> Create(const OpContext& ctx) {
    return std::shared_ptr<BufferPool>(new BufferPool(ctx));
  }
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // num_bytes >= 0; contents are undefined. kResourceExhausted: out of memory.
  absl::StatusOr<SharedBuffer> Get(std::int64_t num_bytes);

  // Free buffers are freed, from now on as soon as they come back.
  void KeepNone();

  // Waits until fewer than `limit` buffers are in use, for at most `timeout`; whether that came.
  bool AwaitFewerInUse(std::int64_t limit, absl::Duration timeout);

  // Bytes allocated now (in use and free), and the most there ever were.
  std::int64_t allocated_bytes() const;
  std::int64_t peak_bytes() const;

 private:
  explicit BufferPool(const OpContext& ctx) : ctx_(ctx) {}
  void Put(std::unique_ptr<Buffer> buffer);

  const OpContext ctx_;
  mutable absl::Mutex mutex_;
  absl::CondVar returned_;
  std::vector<std::unique_ptr<Buffer>> free_ ABSL_GUARDED_BY(mutex_);
  bool keeps_none_ ABSL_GUARDED_BY(mutex_) = false;
  std::int64_t num_in_use_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t allocated_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t peak_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_BUFFER_H_
