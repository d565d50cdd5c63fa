// A GPU of this process, its memory and its streams. No CUDA type is named here: code that is compiled without the
// toolkit includes this header, and links a stub in which Open fails.
#ifndef QST_KERNELS_CUDA_DEVICE_H_
#define QST_KERNELS_CUDA_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qst {
namespace cuda {

struct DeviceOptions {
  int ordinal = 0;
  // What Allocate may hand out in all. 0: nine tenths of what is free when the device is opened.
  std::int64_t memory_budget_bytes = 0;
};

struct StreamOptions {
  // Products of two float32 matrices (side network) on tensor cores, their factors rounded to TF32 (10 bits of
  // mantissa); sums stay float32.
  bool allow_tf32 = false;
};

// What a stream belongs to and works with; defined in stream.cuh for CUDA sources. One thread at a time enqueues.
class Stream;
struct StreamDeleter {
  void operator()(Stream* stream) const;
};
using StreamPtr = std::unique_ptr<Stream, StreamDeleter>;

// Thread-safe. Must outlive its streams and all memory that it handed out.
class Device {
 public:
  // GPUs that this process sees: 0 without a driver, and in a build without the backend.
  static int Count();
  // kUnimplemented: build without the CUDA backend. kFailedPrecondition: no such GPU, or one too old (below sm_80);
  // kResourceExhausted: budget above what is free. The message says what there is.
  static absl::StatusOr<std::unique_ptr<Device>> Open(const DeviceOptions& options);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const std::string& name() const;  // "NVIDIA H100 80GB HBM3 (cuda:0, sm_90)"
  int ordinal() const;
  std::int64_t memory_budget_bytes() const;
  std::int64_t allocated_bytes() const;  // in use now
  std::int64_t peak_bytes() const;       // most that was in use at once
  // Lets the peak begin anew at what is in use now.
  void ResetPeak();

  // Once on every thread that enqueues work: a thread begins with GPU 0, whichever this is.
  absl::Status MakeCurrent() const;

  // A stream with its own cuBLASLt workspace, panels of unpacked weights and pinned staging.
  absl::StatusOr<StreamPtr> NewStream(const StreamOptions& options = StreamOptions());
  // A stream of high priority for copies and transfers alone: it has none of that, so no other op may use it, nor copies
  // from and to the host.
  absl::StatusOr<StreamPtr> NewTransferStream();

  // num_bytes >= 0 of device memory, 256-byte aligned, uninitialized. Freed pieces are kept for requests of like size.
  // Free may be called while work that uses the memory is still enqueued on `stream`s of this device only if whoever
  // gets the piece next works on the same stream; else synchronize first.
  // kResourceExhausted: beyond the budget; the message says by how much.
  absl::StatusOr<void*> Allocate(std::int64_t num_bytes);
  void Free(void* memory);
  // kResourceExhausted unless num_bytes more would fit the budget now: asked before a plan allocates anything.
  absl::Status CheckFits(std::int64_t num_bytes) const;

 private:
  struct State;
  explicit Device(std::unique_ptr<State> state);
  friend class Stream;
  std::unique_ptr<State> state_;
};

Device& DeviceOf(Stream& stream);
// The cudaStream_t, for libraries that enqueue work of their own.
void* NativeHandle(Stream& stream);

// Copies and fills are enqueued. `host` may be used again when the call returns (it is copied to pinned staging where
// needed). ToHost returns when the data is there.
absl::Status CopyToDevice(Stream& stream, const void* host, std::int64_t num_bytes, void* device);
absl::Status CopyToHost(Stream& stream, const void* device, std::int64_t num_bytes, void* host);
absl::Status CopyOnDevice(Stream& stream, const void* from, std::int64_t num_bytes, void* to);
absl::Status FillZero(Stream& stream, void* device, std::int64_t num_bytes);
// Waits for all that was enqueued. kInternal: a kernel failed; the message has CUDA's reason.
absl::Status Synchronize(Stream& stream);

// A point in a stream that others wait for without holding up the host.
class Event {
 public:
  // With `is_timed`, MillisecondsSince may be asked; waiting for others is quicker.
  static absl::StatusOr<Event> Create(bool is_timed = false);
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  absl::Status Record(Stream& stream);
  // Work enqueued on `stream` from now on begins after the last Record's work; nothing recorded: at once.
  absl::Status MakeWait(Stream& stream) const;
  absl::Status Synchronize() const;
  absl::StatusOr<bool> IsDone() const;
  // Of the device's time, between what the two recorded; both are timed and done.
  absl::StatusOr<double> MillisecondsSince(const Event& earlier) const;

 private:
  explicit Event(void* event) : event_(event) {}
  void* event_ = nullptr;
};

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_DEVICE_H_
