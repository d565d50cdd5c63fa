// The work of a side network's layers as graphs (kernels/device_graph.h), for shapes of micro-batches that repeat.
#ifndef QST_WORKER_SIDE_GRAPH_CACHE_H_
#define QST_WORKER_SIDE_GRAPH_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/device_graph.h"
#include "worker/side/arena.h"
#include "worker/side/side_batch.h"

namespace qst {

struct GraphStats {
  std::int64_t num_plain = 0;     // units whose launches were enqueued one by one
  std::int64_t num_captured = 0;  // graphs made; each was then launched, too
  std::int64_t num_replayed = 0;  // units that an earlier graph did
  bool is_failed = false;         // capturing failed once, and is not tried again
};

// Work comes in units. A shape's unit runs plainly at first, which makes all that ops make when they first need it; is
// captured when it comes again; and from then on its graph does it. Whatever the host puts into the launches must
// follow from the shape, from the memory that the arena hands out, and from what never changes.
//
// Not thread-safe.
class GraphCache {
 public:
  // Shapes that are kept; those that have not come for longest go first.
  static constexpr std::size_t kMaxShapes = 16;

  GraphCache(const OpContext& ctx, const Arena* arena) : ctx_(ctx), arena_(arena) {}

  // Everything runs plainly from now on, as before the first Select.
  void Deselect() { is_selected_ = false; }
  // Run works for this shape from now on.
  void Select(const BatchShape& shape, std::size_t num_units);
  // Enqueues `work` in one way or another. It leaves the arena as it found it. If CUDA refuses a graph, `work` runs
  // plainly, and so does all that follows; a warning says why. Errors of `work`.
  absl::Status Run(std::size_t unit, const std::function<absl::Status()>& work);

  const GraphStats& stats() const { return stats_; }

 private:
  // What must be as it was for a graph to be launched: memory of the stream's ops, that of the arena, and the place in
  // the arena that the unit begins at.
  using Stamp = std::tuple<std::int64_t, std::int64_t, std::size_t, std::int64_t>;
  struct Unit {
    std::optional<Stamp> ran_at;
    std::optional<DeviceGraph> graph;
  };
  struct Shape {
    BatchShape shape;
    std::vector<Unit> units;
  };

  Stamp Now() const;
  absl::Status RunPlainly(const std::function<absl::Status()>& work);
  void GiveUp(const absl::Status& reason);

  const OpContext ctx_;
  const Arena* const arena_;
  std::list<Shape> shapes_;  // the newest first; that one is selected
  bool is_selected_ = false;
  GraphStats stats_;
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_GRAPH_CACHE_H_
