// Streams, events and captured graphs, as the runtime API's calls share them; and how other stand-ins (cuBLASLt, NCCL)
// put work into a stream.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_STREAM_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_STREAM_H_

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "cuda_shim/runtime_api.h"
#include "kernels/testing/cuda_shim/work_queue.h"

namespace qst::cuda_shim {

// Whether a call requires that the stream's device is the calling thread's.
enum class StreamUse { kOwnDevice, kAnyDevice };

// Puts `run` into the stream (null: the default stream of the calling thread's device); in the eager mode returns after
// it has run, unless it has to wait for something that is not `ready` (see WorkQueue::Add). While the stream captures, it is only noted, and may run many times later.
// Errors are CUDA's.
cudaError_t Enqueue(cudaStream_t stream, StreamUse use, std::function<void()> run, std::function<bool()> ready = {});

// The same, and returns after it has run in every mode. Not while the stream captures.
cudaError_t EnqueueAndFinish(cudaStream_t stream, StreamUse use, std::function<void()> run);

// For calls that CUDA forbids while a stream captures. Returns cudaErrorStreamCaptureUnsupported and spoils the
// capture, or cudaSuccess if the calling thread may go on.
cudaError_t CheckNotCapturing();

// Whether the stream captures (false for handles that are not streams).
bool IsCapturing(cudaStream_t stream);

struct GraphNode {
  std::function<void()> run;
  std::function<bool()> ready;
  std::vector<int> after;  // earlier nodes
};

struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  cudaStream_t origin = nullptr;
  bool is_invalidated = false;
  std::vector<GraphNode> nodes;
  std::set<cudaStream_t> streams;
};

// One recording of an event.
struct EventRecord {
  WorkPtr work;
  std::atomic<double> milliseconds{0};  // when it happened
};

// Guards everything below, and all streams and events. Never held while work runs.
struct Runtime {
  std::mutex mutex;
  std::vector<std::unique_ptr<CUstream_st>> default_streams;  // by device
  std::set<CUstream_st*> streams;
  std::set<CUevent_st*> events;
  std::set<std::shared_ptr<Capture>> captures;
};
Runtime& GetRuntime();

// Null if the handle is of no stream. Needs the lock.
CUstream_st* FindStream(Runtime& runtime, cudaStream_t stream);
// What new work of the stream has to wait for. Needs the lock.
std::vector<WorkPtr> Predecessors(Runtime& runtime, const CUstream_st& stream);
// Adds a node behind what the stream has captured. Needs the lock.
void AddNode(CUstream_st& stream, std::function<void()> run, std::function<bool()> ready);

}  // namespace qst::cuda_shim

struct CUstream_st {
  int device = 0;
  unsigned int flags = cudaStreamDefault;
  int priority = 0;
  bool is_default = false;
  qst::cuda_shim::WorkPtr last;
  std::shared_ptr<qst::cuda_shim::Capture> capture;  // null if it does not capture
  std::vector<int> captured_last;                    // nodes of it
};

struct CUevent_st {
  int device = 0;
  unsigned int flags = cudaEventDefault;
  std::shared_ptr<qst::cuda_shim::EventRecord> record;  // null: never recorded, or in a capture
  std::shared_ptr<qst::cuda_shim::Capture> capture;     // that it was last recorded in
  std::vector<int> captured_last;
};

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_STREAM_H_
