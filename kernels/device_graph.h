// A fixed sequence of a context's work that is enqueued by one call, which costs the host less than the launches
// that it is made of. Of CUDA alone: on CPU work is done when its call returns, and there is nothing to save.
#ifndef QST_KERNELS_DEVICE_GRAPH_H_
#define QST_KERNELS_DEVICE_GRAPH_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/graph.h"
#include "kernels/device.h"

namespace qst {

class DeviceGraph {
 public:
  // What `work` enqueues in `ctx`, which does not take place now. What it may do, and errors: cuda::Graph::Capture.
  // kUnimplemented on CPU.
  static absl::StatusOr<DeviceGraph> Capture(const OpContext& ctx, const std::function<absl::Status()>& work);

  // Enqueues it all. Operands are where they were when it was captured, and DeviceMemoryGeneration is what it was then.
  absl::Status Launch(const OpContext& ctx) const { return graph_->Launch(*ctx.stream); }

 private:
  std::unique_ptr<cuda::Graph> graph_;
};

// Another number whenever memory that the context's ops keep between calls has moved. Always 0 on CPU.
std::int64_t DeviceMemoryGeneration(const OpContext& ctx);

// Whether graphs are to be used in this process: yes, unless the environment has QST_CUDA_GRAPHS=0.
bool DeviceGraphsAreWanted();

}  // namespace qst

#endif  // QST_KERNELS_DEVICE_GRAPH_H_
