#include <chrono>
#include <utility>

#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/stream.h"

namespace qst::cuda_shim {
namespace {

double NowMilliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The event's last recording, to wait for; an error if that was in a capture.
cudaError_t LastRecord(cudaEvent_t event, std::shared_ptr<EventRecord>& record) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (runtime.events.count(event) == 0) return cudaErrorInvalidResourceHandle;
  if (event->capture != nullptr) return cudaErrorCapturedEvent;
  record = event->record;
  return cudaSuccess;
}

cudaError_t RecordEvent(cudaEvent_t event, cudaStream_t handle, WorkPtr& work) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  CUstream_st* stream = FindStream(runtime, handle);
  if (stream == nullptr || runtime.events.count(event) == 0 || stream->device != event->device) {
    return cudaErrorInvalidResourceHandle;
  }
  if (stream->capture != nullptr) {
    if (stream->capture->is_invalidated) return cudaErrorStreamCaptureInvalidated;
    event->record = nullptr;
    event->capture = stream->capture;
    event->captured_last = stream->captured_last;
    return cudaSuccess;
  }
  auto record = std::make_shared<EventRecord>();
  record->work = WorkQueue::Get().Add(
      stream->device, [record] { record->milliseconds = NowMilliseconds(); }, Predecessors(runtime, *stream));
  stream->last = record->work;
  event->record = std::move(record);
  event->capture = nullptr;
  work = stream->last;
  return cudaSuccess;
}

cudaError_t WaitEvent(cudaStream_t handle, cudaEvent_t event, WorkPtr& work) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  CUstream_st* stream = FindStream(runtime, handle);
  if (stream == nullptr || runtime.events.count(event) == 0) return cudaErrorInvalidResourceHandle;
  if (event->capture != nullptr) {
    if (runtime.captures.count(event->capture) == 0) return cudaErrorStreamCaptureIsolation;  // ended since
    if (event->capture->is_invalidated) return cudaErrorStreamCaptureInvalidated;
    if (stream->is_default) return cudaErrorStreamCaptureImplicit;
    if (stream->capture != nullptr && stream->capture != event->capture) return cudaErrorStreamCaptureMerge;
    // The stream joins the capture, if it has not yet.
    stream->capture = event->capture;
    stream->capture->streams.insert(stream);
    stream->captured_last.insert(stream->captured_last.end(), event->captured_last.begin(), event->captured_last.end());
    return cudaSuccess;
  }
  if (stream->capture != nullptr) {
    if (event->record == nullptr) return cudaSuccess;
    stream->capture->is_invalidated = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (event->record == nullptr) return cudaSuccess;
  std::vector<WorkPtr> after = Predecessors(runtime, *stream);
  after.push_back(event->record->work);
  stream->last = WorkQueue::Get().Add(stream->device, {}, after);
  work = stream->last;
  return cudaSuccess;
}

}  // namespace
}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  if (event == nullptr || (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming)) != 0) {
    return SetError(cudaErrorInvalidValue);
  }
  auto* created = new CUevent_st;
  created->device = CurrentDevice();
  created->flags = flags;
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  runtime.events.insert(created);
  *event = created;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (runtime.events.erase(event) == 0) return SetError(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  WorkPtr work;
  if (const cudaError_t error = RecordEvent(event, stream, work); error != cudaSuccess) return SetError(error);
  if (!WorkQueue::IsDeferred()) WorkQueue::Get().Advance(work);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags) {
  if (flags != cudaEventRecordDefault) return SetError(cudaErrorInvalidValue);
  return cudaEventRecord(event, stream);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
  if (flags != cudaEventWaitDefault) return SetError(cudaErrorInvalidValue);
  WorkPtr work;
  if (const cudaError_t error = WaitEvent(stream, event, work); error != cudaSuccess) return SetError(error);
  if (!WorkQueue::IsDeferred()) WorkQueue::Get().Advance(work);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  std::shared_ptr<EventRecord> record;
  if (const cudaError_t error = LastRecord(event, record); error != cudaSuccess) return SetError(error);
  if (record != nullptr) WorkQueue::Get().Finish(record->work);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  std::shared_ptr<EventRecord> record;
  if (const cudaError_t error = LastRecord(event, record); error != cudaSuccess) return SetError(error);
  if (record == nullptr || WorkQueue::Get().Poll(record->work)) return cudaSuccess;
  return SetError(cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (milliseconds == nullptr) return SetError(cudaErrorInvalidValue);
  double times[2];
  const cudaEvent_t events[2] = {start, end};
  for (int i = 0; i < 2; ++i) {
    std::shared_ptr<EventRecord> record;
    if (const cudaError_t error = LastRecord(events[i], record); error != cudaSuccess) return SetError(error);
    if (record == nullptr || (events[i]->flags & cudaEventDisableTiming) != 0) {
      return SetError(cudaErrorInvalidResourceHandle);
    }
    if (!WorkQueue::Get().Poll(record->work)) return SetError(cudaErrorNotReady);
    times[i] = record->milliseconds;
  }
  *milliseconds = static_cast<float>(times[1] - times[0]);
  return cudaSuccess;
}
