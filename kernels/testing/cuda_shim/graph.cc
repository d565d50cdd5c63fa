#include <utility>

#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/stream.h"

struct CUgraph_st {
  std::shared_ptr<const std::vector<qst::cuda_shim::GraphNode>> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<qst::cuda_shim::GraphNode>> nodes;
  qst::cuda_shim::WorkPtr last;  // end of the last launch: launches of one exec do not overlap
};

namespace qst::cuda_shim {
namespace {

// Handles that are in use. Guarded by the runtime's mutex.
struct Graphs {
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> execs;
};

Graphs& GetGraphs() {
  static Graphs* graphs = new Graphs;
  return *graphs;
}

// Whether all that was captured leads to the end of the origin stream.
bool AllJoined(const Capture& capture) {
  std::vector<bool> leads_to_end(capture.nodes.size(), false);
  for (const int node : capture.origin->captured_last) leads_to_end[node] = true;
  for (std::size_t i = capture.nodes.size(); i-- > 0;) {
    if (!leads_to_end[i]) return false;
    for (const int before : capture.nodes[i].after) leads_to_end[before] = true;
  }
  return true;
}

cudaError_t LaunchGraph(cudaGraphExec_t exec, cudaStream_t handle, WorkPtr& work) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (GetGraphs().execs.count(exec) == 0) return cudaErrorInvalidValue;
  CUstream_st* stream = FindStream(runtime, handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) {
    stream->capture->is_invalidated = true;
    return cudaErrorNotSupported;  // graphs inside graphs
  }
  WorkQueue& queue = WorkQueue::Get();
  std::vector<WorkPtr> before = Predecessors(runtime, *stream);
  before.push_back(exec->last);
  std::vector<WorkPtr> works;
  for (const GraphNode& node : *exec->nodes) {
    std::vector<WorkPtr> after;
    for (const int earlier : node.after) after.push_back(works[earlier]);
    works.push_back(queue.Add(stream->device, node.run, node.after.empty() ? before : after, node.ready));
  }
  works.insert(works.end(), before.begin(), before.end());
  exec->last = queue.Add(stream->device, {}, works);
  stream->last = exec->last;
  work = exec->last;
  return cudaSuccess;
}

}  // namespace

void AddNode(CUstream_st& stream, std::function<void()> run, std::function<bool()> ready) {
  std::vector<GraphNode>& nodes = stream.capture->nodes;
  nodes.push_back({std::move(run), std::move(ready), std::move(stream.captured_last)});
  stream.captured_last = {static_cast<int>(nodes.size()) - 1};
}

}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return SetError(cudaErrorInvalidValue);
  if (stream == nullptr) return SetError(cudaErrorStreamCaptureUnsupported);
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (runtime.streams.count(stream) == 0) return SetError(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) return SetError(cudaErrorIllegalState);
  auto capture = std::make_shared<Capture>();
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = stream;
  capture->streams.insert(stream);
  stream->capture = capture;
  stream->captured_last.clear();
  runtime.captures.insert(std::move(capture));
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (graph == nullptr) return SetError(cudaErrorInvalidValue);
  *graph = nullptr;
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (stream == nullptr || runtime.streams.count(stream) == 0) return SetError(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr) return SetError(cudaErrorIllegalState);
  if (capture->origin != stream) {
    capture->is_invalidated = true;
    return SetError(cudaErrorStreamCaptureUnmatched);
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return SetError(cudaErrorStreamCaptureWrongThread);
  }
  const bool all_joined = AllJoined(*capture);
  for (const cudaStream_t member : capture->streams) {
    member->capture = nullptr;
    member->captured_last.clear();
  }
  runtime.captures.erase(capture);
  if (capture->is_invalidated) return SetError(cudaErrorStreamCaptureInvalidated);
  if (!all_joined) return SetError(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::make_shared<const std::vector<GraphNode>>(std::move(capture->nodes))};
  GetGraphs().graphs.insert(*graph);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  if (status == nullptr) return SetError(cudaErrorInvalidValue);
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  const CUstream_st* found = FindStream(runtime, stream);
  if (found == nullptr) return SetError(cudaErrorInvalidResourceHandle);
  *status = found->capture == nullptr        ? cudaStreamCaptureStatusNone
            : found->capture->is_invalidated ? cudaStreamCaptureStatusInvalidated
                                             : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* num_nodes) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (GetGraphs().graphs.count(graph) == 0 || num_nodes == nullptr || nodes != nullptr) {
    return SetError(cudaErrorInvalidValue);
  }
  *num_nodes = graph->nodes->size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (exec == nullptr || flags != 0 || GetGraphs().graphs.count(graph) == 0) return SetError(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st{graph->nodes, nullptr};
  GetGraphs().execs.insert(*exec);
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (GetGraphs().execs.count(exec) == 0) return SetError(cudaErrorInvalidValue);
  return SetError(FindStream(runtime, stream) == nullptr ? cudaErrorInvalidResourceHandle : cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  WorkPtr work;
  if (const cudaError_t error = LaunchGraph(exec, stream, work); error != cudaSuccess) return SetError(error);
  if (!WorkQueue::IsDeferred()) WorkQueue::Get().Advance(work);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (GetGraphs().execs.erase(exec) == 0) return SetError(cudaErrorInvalidValue);
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Runtime& runtime = GetRuntime();
  const std::lock_guard<std::mutex> lock(runtime.mutex);
  if (GetGraphs().graphs.erase(graph) == 0) return SetError(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}
