#include "kernels/device_graph.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/string_view.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<DeviceGraph> DeviceGraph::Capture(const OpContext& ctx, const std::function<absl::Status()>& work) {
  if (ctx.device != DeviceType::kCuda) return absl::UnimplementedError("graphs of work are CUDA's alone");
  QST_ASSIGN_OR_RETURN(cuda::Graph captured, cuda::Graph::Capture(*ctx.stream, work));
  DeviceGraph graph;
  graph.graph_ = std::make_unique<cuda::Graph>(std::move(captured));
  return graph;
}

std::int64_t DeviceMemoryGeneration(const OpContext& ctx) {
  return ctx.device == DeviceType::kCuda ? cuda::MemoryGeneration(*ctx.stream) : 0;
}

bool DeviceGraphsAreWanted() {
  const char* const wanted = std::getenv("QST_CUDA_GRAPHS");
  return wanted == nullptr || absl::string_view(wanted) != "0";
}

}  // namespace qst
