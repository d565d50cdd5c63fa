#include "kernels/cuda/graph.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

absl::StatusOr<Graph> Graph::Capture(Stream&, const std::function<absl::Status()>&) { return NoCudaBackend(); }
Graph::Graph(Graph&&) noexcept {}
Graph& Graph::operator=(Graph&&) noexcept { return *this; }
Graph::~Graph() = default;
absl::Status Graph::Launch(Stream&) const { return NoCudaBackend(); }
std::int64_t MemoryGeneration(const Stream&) { return 0; }

}  // namespace cuda
}  // namespace qst
