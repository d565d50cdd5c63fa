// Memory where ops run, and copies between it and the host's: plain memory on CPU, where copies are copies of bytes and
// everything is done when a call returns; the GPU's on CUDA, where work is enqueued on the context's stream.
#ifndef QST_KERNELS_DEVICE_MEMORY_H_
#define QST_KERNELS_DEVICE_MEMORY_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cuda/device.h"
#include "kernels/device.h"

namespace qst {

// Owns bytes on the context's device, aligned to 64 (CPU) or 256 (CUDA). On CUDA the device must outlive it, and enqueued
// work with the bytes must be over before it goes, unless whoever gets them next works on the same stream.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // num_bytes >= 0, uninitialized. kResourceExhausted: out of memory, or beyond the device's budget.
  static absl::StatusOr<DeviceMemory> Allocate(const OpContext& ctx, std::int64_t num_bytes);
  // A copy of the host's bytes; they may be changed when the call returns.
  static absl::StatusOr<DeviceMemory> CopyOf(const OpContext& ctx, const void* host, std::int64_t num_bytes);
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();

  void* data() { return data_; }
  const void* data() const { return data_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  std::int64_t size_bytes() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t size_bytes_ = 0;
  cuda::Device* device_ = nullptr;  // null on CPU
};

// Host to device. `host` may be changed when the call returns.
[[nodiscard]] absl::Status Upload(const OpContext& ctx, const void* host, std::int64_t num_bytes, void* device);
// Device to host; returns when the bytes are there, and so everything enqueued before is done.
[[nodiscard]] absl::Status Download(const OpContext& ctx, const void* device, std::int64_t num_bytes, void* host);
[[nodiscard]] absl::Status CopyBytes(const OpContext& ctx, const void* from, std::int64_t num_bytes, void* to);
[[nodiscard]] absl::Status FillZero(const OpContext& ctx, void* device, std::int64_t num_bytes);
// Waits for all that was enqueued; reports the failure of any kernel since the last call.
[[nodiscard]] absl::Status Synchronize(const OpContext& ctx);

// A point in the work of one context that another waits for without holding up the host. Nothing to do on CPU, where
// work is done when its call returns.
class DeviceEvent {
 public:
  DeviceEvent() = default;
  // With `is_timed`, Since may be asked; waiting for others is quicker.
  static absl::StatusOr<DeviceEvent> Create(const OpContext& ctx, bool is_timed = false);

  absl::Status Record(const OpContext& ctx);
  // Work enqueued on `ctx` from now on begins after what was recorded last.
  absl::Status MakeWait(const OpContext& ctx) const;
  // Holds up the host until then.
  absl::Status Wait() const;
  absl::StatusOr<bool> IsDone() const;
  // Of the device's time, from what `earlier` recorded to what this did; both are timed and done. Zero on CPU.
  absl::StatusOr<absl::Duration> Since(const DeviceEvent& earlier) const;

 private:
  std::unique_ptr<cuda::Event> event_;  // null on CPU
};

}  // namespace qst

#endif  // QST_KERNELS_DEVICE_MEMORY_H_
