// A fixed sequence of a stream's work that is enqueued by one call (a CUDA graph). No CUDA type is named here.
#ifndef QST_KERNELS_CUDA_GRAPH_H_
#define QST_KERNELS_CUDA_GRAPH_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace qst {
namespace cuda {

class Graph {
 public:
  // Calls `work`, and keeps what it enqueues on `stream` instead of running it. `work` may use ops and copies on the
  // device; it must not wait, nor copy from or to the host, nor make memory or the stream's scratch memory grow, nor
  // multiply by a 4-bit weight: it has run once before, so that all of that is there. Other threads may do what they
  // like on other streams.
  // kUnimplemented: build without the CUDA backend. Errors of `work`; kFailedPrecondition: it did what it must not;
  // kInternal: CUDA refused. After an error nothing was enqueued, and the stream goes on as before.
  static absl::StatusOr<Graph> Capture(Stream& stream, const std::function<absl::Status()>& work);
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  // The graph may still be running.
  ~Graph();

  // Enqueues the work on `stream`, which is the one it was captured from. All memory that it works with must still be
  // there: that of its operands, and the stream's own (MemoryGeneration).
  absl::Status Launch(Stream& stream) const;

 private:
  explicit Graph(void* executable) : executable_(executable) {}
  void* executable_ = nullptr;
};

// Another number whenever memory that a stream's ops keep between calls (scratch, panels of weights) has been given
// back for larger: graphs from before must not be launched any more.
std::int64_t MemoryGeneration(const Stream& stream);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GRAPH_H_
