#include "kernels/cuda/device.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/stream.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

constexpr int kMinComputeCapability = 80;
// Requests round up to this, so that sizes which differ little share pieces.
constexpr std::int64_t kGranularity = 2 << 20;
// Smaller requests round up to a power of two.
constexpr std::int64_t kMinPiece = 512;

std::string Megabytes(std::int64_t bytes) { return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6); }

std::int64_t PieceBytes(std::int64_t num_bytes) {
  if (num_bytes >= kGranularity) return (num_bytes + kGranularity - 1) / kGranularity * kGranularity;
  std::int64_t size = kMinPiece;
  while (size < num_bytes) size *= 2;
  return size;
}

}  // namespace

struct Device::State {
  int ordinal = 0;
  std::string name;
  std::int64_t budget = 0;
  int num_multiprocessors = 0;

  mutable absl::Mutex mutex;
  std::multimap<std::int64_t, void*> free_pieces ABSL_GUARDED_BY(mutex);  // by size
  std::map<void*, std::int64_t> used_pieces ABSL_GUARDED_BY(mutex);
  std::int64_t used_bytes ABSL_GUARDED_BY(mutex) = 0;
  std::int64_t held_bytes ABSL_GUARDED_BY(mutex) = 0;  // used and free
  std::int64_t peak_bytes ABSL_GUARDED_BY(mutex) = 0;

  absl::Status Exhausted(std::int64_t num_bytes, std::int64_t used) const {
    return absl::ResourceExhaustedError(absl::StrCat(
        name, ": ", Megabytes(num_bytes), " more do not fit: ", Megabytes(used), " of the budget of ",
        Megabytes(budget), " are in use; use more stages, fewer tokens a pass, or a larger --device_memory"));
  }

  // Gives free pieces back to the driver, largest first, until `wanted` bytes fit the budget.
  void Trim(std::int64_t wanted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    while (!free_pieces.empty() && held_bytes + wanted > budget) {
      const auto largest = std::prev(free_pieces.end());
      cudaFree(largest->second);
      held_bytes -= largest->first;
      free_pieces.erase(largest);
    }
  }
};

int Device::Count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // Clears it: no driver is an answer here.
    return 0;
  }
  return count;
}

absl::StatusOr<std::unique_ptr<Device>> Device::Open(const DeviceOptions& options) {
  const int count = Count();
  if (options.ordinal < 0 || options.ordinal >= count) {
    return absl::FailedPreconditionError(absl::StrCat("cuda:", options.ordinal, ": there is no such GPU; this process sees ",
                                                      count, count == 0 ? " (no driver, or none visible)" : ""));
  }
  QST_CUDA_RETURN_IF_ERROR(cudaSetDevice(options.ordinal));
  cudaDeviceProp properties = {};
  QST_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, options.ordinal));
  if (properties.major * 10 + properties.minor < kMinComputeCapability) {
    return absl::FailedPreconditionError(absl::StrCat("cuda:", options.ordinal, ": ", properties.name, " is sm_",
                                                      properties.major, properties.minor, "; sm_80 or newer is needed"));
  }
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  QST_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  auto state = std::make_unique<State>();
  state->ordinal = options.ordinal;
  state->name =
      absl::StrCat(properties.name, " (cuda:", options.ordinal, ", sm_", properties.major, properties.minor, ")");
  state->num_multiprocessors = properties.multiProcessorCount;
  state->budget = options.memory_budget_bytes > 0 ? options.memory_budget_bytes
                                                  : static_cast<std::int64_t>(free_bytes) / 10 * 9;
  if (state->budget > static_cast<std::int64_t>(free_bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat(state->name, ": a budget of ", Megabytes(state->budget),
                                                     " is more than the ", Megabytes(free_bytes), " that are free of ",
                                                     Megabytes(total_bytes)));
  }
  return std::unique_ptr<Device>(new Device(std::move(state)));
}

Device::Device(std::unique_ptr<State> state) : state_(std::move(state)) {}

Device::~Device() {
  absl::MutexLock lock(&state_->mutex);
  for (const auto& [size, memory] : state_->free_pieces) cudaFree(memory);
  for (const auto& [memory, size] : state_->used_pieces) cudaFree(memory);
}

const std::string& Device::name() const { return state_->name; }
int Device::ordinal() const { return state_->ordinal; }
std::int64_t Device::memory_budget_bytes() const { return state_->budget; }

std::int64_t Device::allocated_bytes() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->used_bytes;
}

std::int64_t Device::peak_bytes() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->peak_bytes;
}

void Device::ResetPeak() {
  absl::MutexLock lock(&state_->mutex);
  state_->peak_bytes = state_->used_bytes;
}

absl::Status Device::MakeCurrent() const {
  QST_CUDA_RETURN_IF_ERROR(cudaSetDevice(state_->ordinal));
  return absl::OkStatus();
}

absl::StatusOr<void*> Device::Allocate(std::int64_t num_bytes) {
  State& s = *state_;
  const std::int64_t size = PieceBytes(num_bytes);
  absl::MutexLock lock(&s.mutex);
  void* memory = nullptr;
  // The smallest free piece that is not more than an eighth too large.
  const auto found = s.free_pieces.lower_bound(size);
  if (found != s.free_pieces.end() && found->first <= size + size / 8) {
    const std::int64_t found_size = found->first;
    memory = found->second;
    s.free_pieces.erase(found);
    s.used_pieces[memory] = found_size;
    s.used_bytes += found_size;
  } else {
    if (s.used_bytes + size > s.budget) return s.Exhausted(num_bytes, s.used_bytes);
    s.Trim(size);
    QST_CUDA_RETURN_IF_ERROR(cudaSetDevice(s.ordinal));
    cudaError_t error = cudaMalloc(&memory, static_cast<std::size_t>(size));
    if (error == cudaErrorMemoryAllocation) {
      // Others use the device too: what is held but unused may make the room.
      cudaGetLastError();
      s.Trim(s.budget);
      error = cudaMalloc(&memory, static_cast<std::size_t>(size));
    }
    QST_RETURN_IF_ERROR(ToStatus(error, absl::StrCat(s.name, ": cudaMalloc of ", Megabytes(size))));
    s.held_bytes += size;
    s.used_bytes += size;
    s.used_pieces[memory] = size;
  }
  s.peak_bytes = std::max(s.peak_bytes, s.used_bytes);
  return memory;
}

void Device::Free(void* memory) {
  if (memory == nullptr) return;
  State& s = *state_;
  absl::MutexLock lock(&s.mutex);
  const auto it = s.used_pieces.find(memory);
  QST_CHECK(it != s.used_pieces.end());
  s.used_bytes -= it->second;
  s.free_pieces.emplace(it->second, memory);
  s.used_pieces.erase(it);
}

absl::Status Device::CheckFits(std::int64_t num_bytes) const {
  absl::MutexLock lock(&state_->mutex);
  if (state_->used_bytes + num_bytes <= state_->budget) return absl::OkStatus();
  return state_->Exhausted(num_bytes, state_->used_bytes);
}

// ---- Streams --------------------------------------------------------------------------------------

namespace {

// Host data that is not pinned goes to the device through pieces of this size, one after the other.
constexpr std::int64_t kStagingPieceBytes = 4 << 20;
constexpr int kStagingPieces = 2;

}  // namespace

struct Stream::Staging {
  void* pieces[kStagingPieces] = {};
  cudaEvent_t copied[kStagingPieces] = {};
  int next = 0;

  ~Staging() {
    for (int i = 0; i < kStagingPieces; ++i) {
      if (copied[i] != nullptr) cudaEventDestroy(copied[i]);
      if (pieces[i] != nullptr) cudaFreeHost(pieces[i]);
    }
  }
};

absl::StatusOr<StreamPtr> Device::NewStream(const StreamOptions& options) {
  QST_CUDA_RETURN_IF_ERROR(cudaSetDevice(state_->ordinal));
  StreamPtr stream(new Stream(this));
  QST_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking));
  QST_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream->unpack_handle, cudaStreamNonBlocking));
  QST_CUDA_RETURN_IF_ERROR(cublasLtCreate(&stream->blas));
  stream->num_multiprocessors = state_->num_multiprocessors;
  stream->allow_tf32 = options.allow_tf32;
  stream->staging = std::make_unique<Stream::Staging>();
  for (int i = 0; i < kStagingPieces; ++i) {
    QST_CUDA_RETURN_IF_ERROR(cudaMallocHost(&stream->staging->pieces[i], kStagingPieceBytes));
    QST_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&stream->staging->copied[i], cudaEventDisableTiming));
  }
  return stream;
}

absl::StatusOr<StreamPtr> Device::NewTransferStream() {
  QST_CUDA_RETURN_IF_ERROR(cudaSetDevice(state_->ordinal));
  int least = 0;
  int greatest = 0;
  QST_CUDA_RETURN_IF_ERROR(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  StreamPtr stream(new Stream(this));
  QST_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithPriority(&stream->handle, cudaStreamNonBlocking, greatest));
  return stream;
}

Stream::Stream(Device* owner) : device(owner) {}

Stream::~Stream() {
  if (handle != nullptr) cudaStreamSynchronize(handle);
  if (unpack_handle != nullptr) cudaStreamSynchronize(unpack_handle);
  linear.reset();
  staging.reset();
  device->Free(scratch_);
  if (blas != nullptr) cublasLtDestroy(blas);
  if (unpack_handle != nullptr) cudaStreamDestroy(unpack_handle);
  if (handle != nullptr) cudaStreamDestroy(handle);
}

void StreamDeleter::operator()(Stream* stream) const { delete stream; }

absl::StatusOr<void*> Stream::Scratch(std::int64_t num_bytes) {
  if (num_bytes <= scratch_bytes_) return scratch_;
  QST_RETURN_IF_ERROR(CheckNotCapturing(*this, "more scratch memory"));
  QST_RETURN_IF_ERROR(Synchronize(*this));
  ++memory_generation;
  device->Free(scratch_);
  scratch_ = nullptr;
  scratch_bytes_ = 0;
  QST_ASSIGN_OR_RETURN(scratch_, device->Allocate(num_bytes));
  scratch_bytes_ = num_bytes;
  return scratch_;
}

Device& DeviceOf(Stream& stream) { return *stream.device; }
void* NativeHandle(Stream& stream) { return stream.handle; }

absl::Status CopyToDevice(Stream& stream, const void* host, std::int64_t num_bytes, void* device) {
  QST_RETURN_IF_ERROR(CheckNotCapturing(stream, "a copy from the host"));
  stream.unpack_must_wait = true;
  Stream::Staging& staging = *stream.staging;
  for (std::int64_t done = 0; done < num_bytes; done += kStagingPieceBytes) {
    const std::size_t bytes = static_cast<std::size_t>(std::min(kStagingPieceBytes, num_bytes - done));
    const int piece = staging.next;
    staging.next = (piece + 1) % kStagingPieces;
    // Until the copy that used this piece before is done.
    QST_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(staging.copied[piece]));
    std::memcpy(staging.pieces[piece], static_cast<const char*>(host) + done, bytes);
    QST_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(static_cast<char*>(device) + done, staging.pieces[piece], bytes,
                                             cudaMemcpyHostToDevice, stream.handle));
    QST_CUDA_RETURN_IF_ERROR(cudaEventRecord(staging.copied[piece], stream.handle));
  }
  return absl::OkStatus();
}

absl::Status CopyToHost(Stream& stream, const void* device, std::int64_t num_bytes, void* host) {
  QST_RETURN_IF_ERROR(CheckNotCapturing(stream, "a copy to the host"));
  if (num_bytes == 0) return absl::OkStatus();
  QST_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(host, device, static_cast<std::size_t>(num_bytes), cudaMemcpyDeviceToHost,
                                           stream.handle));
  return Synchronize(stream);
}

absl::Status CopyOnDevice(Stream& stream, const void* from, std::int64_t num_bytes, void* to) {
  if (num_bytes == 0) return absl::OkStatus();
  stream.unpack_must_wait = true;
  QST_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(to, from, static_cast<std::size_t>(num_bytes), cudaMemcpyDeviceToDevice,
                                           stream.handle));
  return absl::OkStatus();
}

absl::Status FillZero(Stream& stream, void* device, std::int64_t num_bytes) {
  if (num_bytes == 0) return absl::OkStatus();
  stream.unpack_must_wait = true;
  QST_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(device, 0, static_cast<std::size_t>(num_bytes), stream.handle));
  return absl::OkStatus();
}

absl::Status Synchronize(Stream& stream) {
  QST_RETURN_IF_ERROR(CheckNotCapturing(stream, "waiting for the device"));
  QST_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream.handle));
  return absl::OkStatus();
}

// ---- Events ---------------------------------------------------------------------------------------

absl::StatusOr<Event> Event::Create(bool is_timed) {
  cudaEvent_t event = nullptr;
  QST_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&event, is_timed ? cudaEventDefault : cudaEventDisableTiming));
  return Event(event);
}

Event::Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

absl::Status Event::Record(Stream& stream) {
  QST_CUDA_RETURN_IF_ERROR(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream.handle));
  return absl::OkStatus();
}

absl::Status Event::MakeWait(Stream& stream) const {
  stream.unpack_must_wait = true;
  QST_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream.handle, static_cast<cudaEvent_t>(event_), 0));
  return absl::OkStatus();
}

absl::Status Event::Synchronize() const {
  QST_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)));
  return absl::OkStatus();
}

absl::StatusOr<bool> Event::IsDone() const {
  const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(event_));
  if (error == cudaErrorNotReady) return false;
  QST_CUDA_RETURN_IF_ERROR(error);
  return true;
}

absl::StatusOr<double> Event::MillisecondsSince(const Event& earlier) const {
  float milliseconds = 0.0f;
  QST_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(earlier.event_),
                                                static_cast<cudaEvent_t>(event_)));
  return milliseconds;
}

}  // namespace cuda
}  // namespace qst
