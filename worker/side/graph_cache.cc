#include "worker/side/graph_cache.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "proto/support/status_macros.h"
#include "spdlog/spdlog.h"

namespace qst {

void GraphCache::Select(const BatchShape& shape, std::size_t num_units) {
  is_selected_ = !stats_.is_failed;
  if (!is_selected_) return;
  const auto found = std::find_if(shapes_.begin(), shapes_.end(), [&](const Shape& s) {
    return s.shape.num_tokens == shape.num_tokens && s.shape.num_sequences == shape.num_sequences;
  });
  if (found != shapes_.end()) {
    shapes_.splice(shapes_.begin(), shapes_, found);
    return;
  }
  if (shapes_.size() == kMaxShapes) shapes_.pop_back();
  shapes_.emplace_front();
  shapes_.front().shape = shape;
  shapes_.front().units.resize(num_units);
}

GraphCache::Stamp GraphCache::Now() const {
  const Arena::Mark mark = arena_->GetMark();
  return {DeviceMemoryGeneration(ctx_), arena_->generation(), mark.block, mark.used};
}

absl::Status GraphCache::RunPlainly(const std::function<absl::Status()>& work) {
  ++stats_.num_plain;
  return work();
}

void GraphCache::GiveUp(const absl::Status& reason) {
  spdlog::warn("side network: its work is enqueued launch by launch from now on, without CUDA graphs: {}",
               std::string(reason.message()));
  shapes_.clear();
  is_selected_ = false;
  stats_.is_failed = true;
}

absl::Status GraphCache::Run(std::size_t unit, const std::function<absl::Status()>& work) {
  if (!is_selected_) return RunPlainly(work);
  Unit& u = shapes_.front().units[unit];
  if (u.ran_at != Now()) {
    u.graph.reset();
    QST_RETURN_IF_ERROR(RunPlainly(work));
    // After it, since it may have made memory grow.
    u.ran_at = Now();
    return absl::OkStatus();
  }
  const bool is_new = !u.graph.has_value();
  if (is_new) {
    absl::StatusOr<DeviceGraph> captured = DeviceGraph::Capture(ctx_, work);
    if (captured.ok() && u.ran_at != Now()) captured = absl::InternalError("memory moved in a capture");
    if (!captured.ok()) {
      GiveUp(captured.status());
      return RunPlainly(work);
    }
    u.graph = *std::move(captured);
  }
  const absl::Status launched = u.graph->Launch(ctx_);
  if (!launched.ok()) {
    GiveUp(launched);
    return RunPlainly(work);
  }
  ++(is_new ? stats_.num_captured : stats_.num_replayed);
  return absl::OkStatus();
}

}  // namespace qst
