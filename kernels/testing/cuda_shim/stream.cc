#include "kernels/testing/cuda_shim/stream.h"

#include <utility>

#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/memory.h"

namespace qst::cuda_shim {
namespace {

constexpr int kLeastPriority = 0;
constexpr int kGreatestPriority = -5;

thread_local cudaStreamCaptureMode thread_capture_mode = cudaStreamCaptureModeGlobal;

bool IsBlocking(const CUstream_st& stream) { return (stream.flags & cudaStreamNonBlocking) == 0; }

// Whether the default stream of the device would have to wait for a stream that captures.
bool DefaultStreamMeetsCapture(const Runtime& runtime, int device) {
  for (const CUstream_st* stream : runtime.streams) {
    if (stream->device == device && IsBlocking(*stream) && stream->capture != nullptr) return true;
  }
  return false;
}

cudaError_t CreateStream(cudaStream_t* stream, unsigned int flags, int priority) {
  if (stream == nullptr || (flags & ~cudaStreamNonBlocking) != 0) return SetError(cudaErrorInvalidValue);
  auto* created = new CUstream_st;
  created->device = CurrentDevice();
  created->flags = flags;
  created->priority = priority < kGreatestPriority ? kGreatestPriority
                      : priority > kLeastPriority  ? kLeastPriority
                                                   : priority;
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  runtime.streams.insert(created);
  *stream = created;
  return cudaSuccess;
}

// The stream's last work, to wait for; an error while it captures.
cudaError_t LastWork(cudaStream_t handle, WorkPtr& last) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  const CUstream_st* stream = FindStream(runtime, handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) {
    stream->capture->is_invalidated = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  if (stream->is_default) {
    if (DefaultStreamMeetsCapture(runtime, stream->device)) return cudaErrorStreamCaptureImplicit;
    // Waiting for the default stream means waiting for the streams that it would wait for.
    last = WorkQueue::Get().Add(stream->device, {}, Predecessors(runtime, *stream));
  } else {
    last = stream->last;
  }
  return cudaSuccess;
}

template <class Get>
cudaError_t ReadStream(cudaStream_t handle, const Get& get) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  const CUstream_st* stream = FindStream(runtime, handle);
  if (stream == nullptr) return SetError(cudaErrorInvalidResourceHandle);
  return SetError(get(*stream));
}

cudaError_t Add(cudaStream_t handle, StreamUse use, std::function<void()> run, std::function<bool()> ready,
                bool may_capture, WorkPtr& work) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  CUstream_st* stream = FindStream(runtime, handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (use == StreamUse::kOwnDevice && stream->device != CurrentDevice()) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) {
    if (!may_capture) {
      stream->capture->is_invalidated = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    if (stream->capture->is_invalidated) return cudaErrorStreamCaptureInvalidated;
    AddNode(*stream, std::move(run), std::move(ready));
    return cudaSuccess;
  }
  if (stream->is_default && DefaultStreamMeetsCapture(runtime, stream->device)) return cudaErrorStreamCaptureImplicit;
  stream->last = WorkQueue::Get().Add(stream->device, std::move(run), Predecessors(runtime, *stream), std::move(ready));
  work = stream->last;
  return cudaSuccess;
}

}  // namespace

Runtime& GetRuntime() {
  static Runtime* runtime = [] {
    auto* created = new Runtime;
    for (int device = 0; device < NumDevices(); ++device) {
      created->default_streams.push_back(std::make_unique<CUstream_st>());
      created->default_streams.back()->device = device;
      created->default_streams.back()->is_default = true;
    }
    return created;
  }();
  return *runtime;
}

CUstream_st* FindStream(Runtime& runtime, cudaStream_t stream) {
  if (stream == nullptr) return runtime.default_streams[CurrentDevice()].get();
  return runtime.streams.count(stream) != 0 ? stream : nullptr;
}

std::vector<WorkPtr> Predecessors(Runtime& runtime, const CUstream_st& stream) {
  std::vector<WorkPtr> result = {stream.last};
  if (stream.is_default) {
    for (const CUstream_st* other : runtime.streams) {
      if (other->device == stream.device && IsBlocking(*other)) result.push_back(other->last);
    }
  } else if (IsBlocking(stream)) {
    result.push_back(runtime.default_streams[stream.device]->last);
  }
  return result;
}

cudaError_t Enqueue(cudaStream_t stream, StreamUse use, std::function<void()> run, std::function<bool()> ready) {
  WorkPtr work;
  const cudaError_t error = Add(stream, use, std::move(run), std::move(ready), /*may_capture=*/true, work);
  if (error == cudaSuccess && !WorkQueue::IsDeferred()) WorkQueue::Get().Advance(work);
  return error;
}

cudaError_t EnqueueAndFinish(cudaStream_t stream, StreamUse use, std::function<void()> run) {
  WorkPtr work;
  const cudaError_t error = Add(stream, use, std::move(run), {}, /*may_capture=*/false, work);
  if (error == cudaSuccess) WorkQueue::Get().Finish(work);
  return error;
}

cudaError_t CheckNotCapturing() {
  if (thread_capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  cudaError_t result = cudaSuccess;
  for (const std::shared_ptr<Capture>& capture : runtime.captures) {
    const bool is_own = capture->thread == std::this_thread::get_id();
    const bool forbids =
        is_own ? capture->mode != cudaStreamCaptureModeRelaxed
               : capture->mode == cudaStreamCaptureModeGlobal && thread_capture_mode == cudaStreamCaptureModeGlobal;
    if (!forbids) continue;
    capture->is_invalidated = true;
    result = cudaErrorStreamCaptureUnsupported;
  }
  return result;
}

bool IsCapturing(cudaStream_t handle) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  const CUstream_st* stream = FindStream(runtime, handle);
  return stream != nullptr && stream->capture != nullptr;
}

}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return CreateStream(stream, cudaStreamDefault, 0); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return CreateStream(stream, flags, 0);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int priority) {
  return CreateStream(stream, flags, priority);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least != nullptr) *least = kLeastPriority;
  if (greatest != nullptr) *greatest = kGreatestPriority;
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  if (priority == nullptr) return SetError(cudaErrorInvalidValue);
  return ReadStream(stream, [priority](const CUstream_st& s) {
    *priority = s.priority;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned int* flags) {
  if (flags == nullptr) return SetError(cudaErrorInvalidValue);
  return ReadStream(stream, [flags](const CUstream_st& s) {
    *flags = s.flags;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  if (device == nullptr) return SetError(cudaErrorInvalidValue);
  return ReadStream(stream, [device](const CUstream_st& s) {
    *device = s.device;
    return cudaSuccess;
  });
}

// Returns at once, as on a device: work given to the stream still runs when its time comes.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (stream == nullptr || runtime.streams.count(stream) == 0) return SetError(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) {
    stream->capture->is_invalidated = true;
    stream->capture->streams.erase(stream);
  }
  runtime.streams.erase(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  WorkPtr last;
  if (const cudaError_t error = LastWork(stream, last); error != cudaSuccess) return SetError(error);
  WorkQueue::Get().Finish(last);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  WorkPtr last;
  if (const cudaError_t error = LastWork(stream, last); error != cudaSuccess) return SetError(error);
  return SetError(WorkQueue::Get().Poll(last) ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  WorkQueue::Get().FinishDevice(CurrentDevice());
  CheckAllGuards();
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* user_data) {
  if (function == nullptr) return SetError(cudaErrorInvalidValue);
  return SetError(Enqueue(stream, StreamUse::kAnyDevice, [function, user_data] { function(user_data); }));
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  if (mode == nullptr) return SetError(cudaErrorInvalidValue);
  std::swap(*mode, thread_capture_mode);
  return cudaSuccess;
}
