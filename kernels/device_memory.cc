#include "kernels/device_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr std::int64_t kAlignment = 64;

bool IsCuda(const OpContext& ctx) { return ctx.device == DeviceType::kCuda; }

void CopyOnHost(const void* from, std::int64_t num_bytes, void* to) {
  if (num_bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(num_bytes));
}

}  // namespace

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(const OpContext& ctx, std::int64_t num_bytes) {
  DeviceMemory memory;
  memory.size_bytes_ = num_bytes;
  if (IsCuda(ctx)) {
    cuda::Device& device = cuda::DeviceOf(*ctx.stream);
    QST_ASSIGN_OR_RETURN(memory.data_, device.Allocate(num_bytes));
    memory.device_ = &device;
    return memory;
  }
  const std::int64_t size = (std::max<std::int64_t>(num_bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  memory.data_ = std::aligned_alloc(kAlignment, static_cast<std::size_t>(size));
  if (memory.data_ == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("out of memory: ", num_bytes, " bytes could not be had"));
  }
  return memory;
}

absl::StatusOr<DeviceMemory> DeviceMemory::CopyOf(const OpContext& ctx, const void* host, std::int64_t num_bytes) {
  QST_ASSIGN_OR_RETURN(DeviceMemory memory, Allocate(ctx, num_bytes));
  QST_RETURN_IF_ERROR(Upload(ctx, host, num_bytes, memory.data()));
  return memory;
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      device_(std::exchange(other.device_, nullptr)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(device_, other.device_);
  return *this;
}

DeviceMemory::~DeviceMemory() {
  if (device_ != nullptr) {
    device_->Free(data_);
  } else {
    std::free(data_);
  }
}

absl::Status Upload(const OpContext& ctx, const void* host, std::int64_t num_bytes, void* device) {
  if (IsCuda(ctx)) return cuda::CopyToDevice(*ctx.stream, host, num_bytes, device);
  CopyOnHost(host, num_bytes, device);
  return absl::OkStatus();
}

absl::Status Download(const OpContext& ctx, const void* device, std::int64_t num_bytes, void* host) {
  if (IsCuda(ctx)) return cuda::CopyToHost(*ctx.stream, device, num_bytes, host);
  CopyOnHost(device, num_bytes, host);
  return absl::OkStatus();
}

absl::Status CopyBytes(const OpContext& ctx, const void* from, std::int64_t num_bytes, void* to) {
  if (IsCuda(ctx)) return cuda::CopyOnDevice(*ctx.stream, from, num_bytes, to);
  CopyOnHost(from, num_bytes, to);
  return absl::OkStatus();
}

absl::Status FillZero(const OpContext& ctx, void* device, std::int64_t num_bytes) {
  if (IsCuda(ctx)) return cuda::FillZero(*ctx.stream, device, num_bytes);
  if (num_bytes > 0) std::memset(device, 0, static_cast<std::size_t>(num_bytes));
  return absl::OkStatus();
}

absl::Status Synchronize(const OpContext& ctx) {
  return IsCuda(ctx) ? cuda::Synchronize(*ctx.stream) : absl::OkStatus();
}

absl::StatusOr<DeviceEvent> DeviceEvent::Create(const OpContext& ctx, bool is_timed) {
  DeviceEvent event;
  if (IsCuda(ctx)) {
    QST_ASSIGN_OR_RETURN(cuda::Event made, cuda::Event::Create(is_timed));
    event.event_ = std::make_unique<cuda::Event>(std::move(made));
  }
  return event;
}

absl::Status DeviceEvent::Record(const OpContext& ctx) {
  return event_ == nullptr ? absl::OkStatus() : event_->Record(*ctx.stream);
}

absl::Status DeviceEvent::MakeWait(const OpContext& ctx) const {
  return event_ == nullptr ? absl::OkStatus() : event_->MakeWait(*ctx.stream);
}

absl::Status DeviceEvent::Wait() const { return event_ == nullptr ? absl::OkStatus() : event_->Synchronize(); }

absl::StatusOr<bool> DeviceEvent::IsDone() const {
  if (event_ == nullptr) return true;
  return event_->IsDone();
}

absl::StatusOr<absl::Duration> DeviceEvent::Since(const DeviceEvent& earlier) const {
  if (event_ == nullptr || earlier.event_ == nullptr) return absl::ZeroDuration();
  QST_ASSIGN_OR_RETURN(const double milliseconds, event_->MillisecondsSince(*earlier.event_));
  return absl::Milliseconds(milliseconds);
}

}  // namespace qst
