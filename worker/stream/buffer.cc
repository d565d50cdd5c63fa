#include "worker/stream/buffer.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace qst {
namespace {

constexpr std::size_t kAlignment = 64;
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

BufferPool::~BufferPool() {
  for (const std::unique_ptr<Buffer>& buffer : free_) std::free(buffer->data_);
}

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
      const std::size_t capacity = free_[i]->capacity_;
      if (FitsWithoutWaste(capacity, wanted)) {
        if (best == free_.size() || capacity < free_[best]->capacity_) best = i;
      } else if (capacity < wanted && capacity >= wanted / 4) {
        if (too_small == free_.size() || capacity < free_[too_small]->capacity_) too_small = i;
      }
    }
    const bool is_found = best < free_.size();
    const std::size_t taken = is_found ? best : too_small;
    if (taken < free_.size()) {
      std::swap(free_[taken], free_.back());
      (is_found ? buffer : outgrown) = std::move(free_.back());
      free_.pop_back();
      if (outgrown != nullptr) allocated_bytes_ -= static_cast<std::int64_t>(outgrown->capacity_);
    }
  }
  if (outgrown != nullptr) std::free(outgrown->data_);
  if (buffer == nullptr) {
    buffer = std::make_unique<Buffer>();
    buffer->capacity_ = std::max(kPage, (wanted + kPage - 1) / kPage * kPage);
    buffer->data_ = static_cast<std::uint8_t*>(std::aligned_alloc(kAlignment, buffer->capacity_));
    if (buffer->data_ == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("no memory for a buffer of ", num_bytes, " bytes"));
    }
    absl::MutexLock lock(&mutex_);
    allocated_bytes_ += static_cast<std::int64_t>(buffer->capacity_);
    peak_bytes_ = std::max(peak_bytes_, allocated_bytes_);
  }
  buffer->size_ = wanted;
  return SharedBuffer(buffer.release(),
                      [pool = shared_from_this()](Buffer* returned) { pool->Put(std::unique_ptr<Buffer>(returned)); });
}

void BufferPool::Put(std::unique_ptr<Buffer> buffer) {
  absl::MutexLock lock(&mutex_);
  free_.push_back(std::move(buffer));
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
