// Copies and fills.
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda_shim/runtime_api.h"
#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/memory.h"
#include "kernels/testing/cuda_shim/stream.h"

namespace qst::cuda_shim {
namespace {

// Rows of `width` bytes, `*_pitch` bytes apart.
struct Copy {
  unsigned char* to;
  std::size_t to_pitch;
  const unsigned char* from;
  std::size_t from_pitch;
  std::size_t width;
  std::size_t height;

  void Run() const {
    for (std::size_t row = 0; row < height; ++row) std::memmove(to + row * to_pitch, from + row * from_pitch, width);
  }
};

std::size_t SpanBytes(std::size_t pitch, std::size_t width, std::size_t height) { return (height - 1) * pitch + width; }

// One side of a copy: whether it lies where `kind` says, whole.
cudaError_t CheckSide(const void* address, std::size_t bytes, bool must_be_device, bool may_be_either,
                      MemoryKind& kind) {
  if (address == nullptr) return cudaErrorInvalidValue;
  const MemoryRange range = FindMemory(address);
  kind = range.kind;
  if (!may_be_either && (range.kind == MemoryKind::kDevice) != must_be_device) return cudaErrorInvalidValue;
  if (range.kind != MemoryKind::kPageable && bytes > range.bytes_left) return cudaErrorInvalidValue;
  return cudaSuccess;
}

cudaError_t EnqueueCopy(const Copy& copy, cudaMemcpyKind kind, cudaStream_t stream, bool is_async) {
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (copy.width > copy.to_pitch || copy.width > copy.from_pitch) return cudaErrorInvalidPitchValue;
  if (copy.width == 0 || copy.height == 0) return cudaSuccess;
  const bool either = kind == cudaMemcpyDefault;
  MemoryKind to_kind;
  MemoryKind from_kind;
  if (const cudaError_t error =
          CheckSide(copy.to, SpanBytes(copy.to_pitch, copy.width, copy.height),
                    kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, either, to_kind);
      error != cudaSuccess) {
    return error;
  }
  if (const cudaError_t error =
          CheckSide(copy.from, SpanBytes(copy.from_pitch, copy.width, copy.height),
                    kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice, either, from_kind);
      error != cudaSuccess) {
    return error;
  }
  const auto run = [copy] { copy.Run(); };
  if (!is_async) {
    if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return error;
    // Between places on devices even the blocking call does not wait.
    if (to_kind == MemoryKind::kDevice && from_kind == MemoryKind::kDevice) {
      return Enqueue(stream, StreamUse::kAnyDevice, run);
    }
    return EnqueueAndFinish(stream, StreamUse::kAnyDevice, run);
  }
  if (!IsCapturing(stream)) {
    // CUDA waits until pageable memory has been written, and takes a copy of what it reads from it.
    if (to_kind == MemoryKind::kPageable) return EnqueueAndFinish(stream, StreamUse::kAnyDevice, run);
    if (from_kind == MemoryKind::kPageable) {
      auto staged = std::make_shared<std::vector<unsigned char>>(copy.width * copy.height);
      Copy stage = copy;
      stage.to = staged->data();
      stage.to_pitch = copy.width;
      stage.Run();
      Copy rest = copy;
      rest.from = staged->data();
      rest.from_pitch = copy.width;
      return Enqueue(stream, StreamUse::kAnyDevice, [staged, rest] { rest.Run(); });
    }
  }
  return Enqueue(stream, StreamUse::kAnyDevice, run);
}

Copy Row(void* to, const void* from, std::size_t bytes) {
  return {static_cast<unsigned char*>(to), bytes, static_cast<const unsigned char*>(from), bytes, bytes, 1};
}

cudaError_t EnqueueFill(void* address, std::size_t pitch, int value, std::size_t width, std::size_t height,
                        cudaStream_t stream) {
  if (width > pitch) return cudaErrorInvalidPitchValue;
  if (width == 0 || height == 0) return cudaSuccess;
  if (address == nullptr) return cudaErrorInvalidValue;
  const MemoryRange range = FindMemory(address);
  if (range.kind == MemoryKind::kPageable || SpanBytes(pitch, width, height) > range.bytes_left) {
    return cudaErrorInvalidValue;
  }
  auto* to = static_cast<unsigned char*>(address);
  return Enqueue(stream, StreamUse::kAnyDevice, [to, pitch, value, width, height] {
    for (std::size_t row = 0; row < height; ++row) std::memset(to + row * pitch, value, width);
  });
}

}  // namespace
}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return SetError(EnqueueCopy(Row(to, from, bytes), kind, nullptr, /*is_async=*/false));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return SetError(EnqueueCopy(Row(to, from, bytes), kind, stream, /*is_async=*/true));
}

cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                                cudaStream_t stream) {
  if (to_device < 0 || to_device >= NumDevices() || from_device < 0 || from_device >= NumDevices()) {
    return SetError(cudaErrorInvalidDevice);
  }
  if (bytes != 0 && (FindMemory(to).device != to_device || FindMemory(from).device != from_device)) {
    return SetError(cudaErrorInvalidValue);
  }
  return SetError(EnqueueCopy(Row(to, from, bytes), cudaMemcpyDeviceToDevice, stream, /*is_async=*/true));
}

cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                         std::size_t height, cudaMemcpyKind kind) {
  const Copy copy = {
      static_cast<unsigned char*>(to), to_pitch, static_cast<const unsigned char*>(from), from_pitch, width, height};
  return SetError(EnqueueCopy(copy, kind, nullptr, /*is_async=*/false));
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  const Copy copy = {
      static_cast<unsigned char*>(to), to_pitch, static_cast<const unsigned char*>(from), from_pitch, width, height};
  return SetError(EnqueueCopy(copy, kind, stream, /*is_async=*/true));
}

cudaError_t cudaMemset(void* address, int value, std::size_t bytes) {
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  return SetError(EnqueueFill(address, bytes, value, bytes, 1, nullptr));
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  return SetError(EnqueueFill(address, bytes, value, bytes, 1, stream));
}

cudaError_t cudaMemset2DAsync(void* address, std::size_t pitch, int value, std::size_t width, std::size_t height,
                              cudaStream_t stream) {
  return SetError(EnqueueFill(address, pitch, value, width, height, stream));
}
