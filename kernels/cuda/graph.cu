#include <cuda_runtime.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/stream.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

// Destroys a graph that was made into an executable one, or was not.
struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using GraphPtr = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, GraphDeleter>;

// Ends the capture whatever came before, so that the stream can be used again.
absl::StatusOr<GraphPtr> CaptureWork(Stream& stream, const std::function<absl::Status()>& work) {
  // Other threads go on allocating.
  QST_CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal));
  stream.is_capturing = true;
  const absl::Status status = work();
  stream.is_capturing = false;
  cudaGraph_t graph = nullptr;
  const cudaError_t error = cudaStreamEndCapture(stream.handle, &graph);
  GraphPtr owned(graph);
  // A capture's errors are its own; later calls must not meet them.
  if (error != cudaSuccess || !status.ok()) cudaGetLastError();
  QST_RETURN_IF_ERROR(status);
  QST_RETURN_IF_ERROR(ToStatus(error, "cudaStreamEndCapture"));
  return owned;
}

}  // namespace

absl::StatusOr<Graph> Graph::Capture(Stream& stream, const std::function<absl::Status()>& work) {
  QST_ASSIGN_OR_RETURN(const GraphPtr graph, CaptureWork(stream, work));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph.get(), 0);
  if (error != cudaSuccess) cudaGetLastError();
  QST_RETURN_IF_ERROR(ToStatus(error, "cudaGraphInstantiate"));
  return Graph(executable);
}

Graph::Graph(Graph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(executable_, other.executable_);
  return *this;
}

Graph::~Graph() {
  if (executable_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

absl::Status Graph::Launch(Stream& stream) const {
  // The graph has no events to tell unpacking of weights when it is done with panels, or has written one.
  stream.unpack_must_wait = true;
  const cudaError_t error = cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), stream.handle);
  if (error != cudaSuccess) cudaGetLastError();
  return ToStatus(error, "cudaGraphLaunch");
}

std::int64_t MemoryGeneration(const Stream& stream) { return stream.memory_generation; }

}  // namespace cuda
}  // namespace qst
