#include "worker/stream/buffer.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Capacities are whole pages: the tail of a page could not be used by anything else that is large.
constexpr std::size_t kPage = 4096;
// A buffer serves requests down to a quarter of its capacity (small ones: whatever they are).
constexpr std::size_t kSmall = 64 * 1024;
// No message is that large; a size beyond it was computed wrongly.
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 38;

bool FitsWithoutWaste(std::size_t capacity, std::size_t num_bytes) {
  return capacity >= num_bytes && capacity <= std::max(kSmall, 4 * num_bytes);
}

}  // namespace

// Its memory may go to another stream.
Buffer::~Buffer() { WaitForLastUse().IgnoreError(); }

absl::Status Buffer::BeginUse(const OpContext& ctx) const {
  if (!is_on_device_ || !last_use_.has_value()) return absl::OkStatus();
  return last_use_->MakeWait(ctx);
}

absl::Status Buffer::EndUse(const OpContext& ctx) {
  if (!is_on_device_) return absl::OkStatus();
  if (!last_use_.has_value()) {
    QST_ASSIGN_OR_RETURN(last_use_, DeviceEvent::Create(ctx));
  }
  return last_use_->Record(ctx);
}

absl::Status Buffer::WaitForLastUse() const { return last_use_.has_value() ? last_use_->Wait() : absl::OkStatus(); }

absl::StatusOr<bool> Buffer::IsLastUseDone() const { return last_use_.has_value() ? last_use_->IsDone() : true; }

absl::StatusOr<SharedBuffer> BufferPool::Get(std::int64_t num_bytes) {
  if (num_bytes < 0) return absl::InvalidArgumentError(absl::StrCat("buffer of ", num_bytes, " bytes"));
  if (num_bytes > kMaxBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for a buffer of ", num_bytes, " bytes"));
  }
  const std::size_t wanted = static_cast<std::size_t>(num_bytes);
  std::unique_ptr<Buffer> buffer;
  std::unique_ptr<Buffer> outgrown;
  {
    absl::MutexLock lock(&mutex_);
    std::size_t best = free_.size();
    std::size_t too_small = free_.size();
    for (std::size_t i = 0; i < free_.size(); ++i) {
      const std::size_t capacity = free_[i]->capacity();
      if (FitsWithoutWaste(capacity, wanted)) {
        if (best == free_.size() || capacity < free_[best]->capacity()) best = i;
      } else if (capacity < wanted && capacity >= wanted / 4) {
        if (too_small == free_.size() || capacity < free_[too_small]->capacity()) too_small = i;
      }
    }
    const bool is_found = best < free_.size();
    const std::size_t taken = is_found ? best : too_small;
    if (taken < free_.size()) {
      std::swap(free_[taken], free_.back());
      (is_found ? buffer : outgrown) = std::move(free_.back());
      free_.pop_back();
      if (outgrown != nullptr) allocated_bytes_ -= outgrown->memory_.size_bytes();
    }
  }
  outgrown.reset();
  if (buffer == nullptr) {
    buffer = std::make_unique<Buffer>();
    const std::size_t capacity = std::max(kPage, (wanted + kPage - 1) / kPage * kPage);
    absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(ctx_, static_cast<std::int64_t>(capacity));
    if (!memory.ok()) return Annotate(memory.status(), absl::StrCat("buffer of ", num_bytes, " bytes"));
    buffer->memory_ = *std::move(memory);
    buffer->is_on_device_ = ctx_.device == DeviceType::kCuda;
    absl::MutexLock lock(&mutex_);
    allocated_bytes_ += buffer->memory_.size_bytes();
    peak_bytes_ = std::max(peak_bytes_, allocated_bytes_);
  }
  {
    absl::MutexLock lock(&mutex_);
    ++num_in_use_;
  }
  buffer->size_ = wanted;
  return SharedBuffer(buffer.release(),
                      [pool = shared_from_this()](Buffer* returned) { pool->Put(std::unique_ptr<Buffer>(returned)); });
}

void BufferPool::Put(std::unique_ptr<Buffer> buffer) {
  absl::MutexLock lock(&mutex_);
  --num_in_use_;
  returned_.SignalAll();
  // Freed by the destructor of the argument, after the lock is.
  if (keeps_none_) {
    allocated_bytes_ -= buffer->memory_.size_bytes();
  } else {
    free_.push_back(std::move(buffer));
  }
}

void BufferPool::KeepNone() {
  std::vector<std::unique_ptr<Buffer>> unused;
  absl::MutexLock lock(&mutex_);
  keeps_none_ = true;
  unused.swap(free_);
  for (const std::unique_ptr<Buffer>& buffer : unused) allocated_bytes_ -= buffer->memory_.size_bytes();
}

bool BufferPool::AwaitFewerInUse(std::int64_t limit, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::MutexLock lock(&mutex_);
  while (num_in_use_ >= limit) {
    if (returned_.WaitWithDeadline(&mutex_, deadline)) return num_in_use_ < limit;
  }
  return true;
}

std::int64_t BufferPool::allocated_bytes() const {
  absl::MutexLock lock(&mutex_);
  return allocated_bytes_;
}

std::int64_t BufferPool::peak_bytes() const {
  absl::MutexLock lock(&mutex_);
  return peak_bytes_;
}

}  // namespace qst
