// A micro-batch: on the host as the batcher packs it, and on the device as the ops read it.
#ifndef QST_WORKER_SIDE_SIDE_BATCH_H_
#define QST_WORKER_SIDE_SIDE_BATCH_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "worker/side/arena.h"
#include "worker/side/head.h"

namespace qst {

// Whole sequences one after another, T tokens in all, and what to predict in them.
struct SideBatch {
  std::vector<std::int32_t> offsets;  // [num_sequences + 1], from 0 to T
  // Rows (ascending) with a target, and the target: the next token, or the class of the sequence that the row ends, or
  // its value for regression.
  std::vector<std::int32_t> rows;
  std::vector<std::int32_t> targets;  // empty for regression
  std::vector<float> values;          // empty for all else

  std::int64_t num_tokens() const { return offsets.empty() ? 0 : offsets.back(); }
  std::int64_t num_targets() const { return static_cast<std::int64_t>(rows.size()); }
};

// kInvalidArgument: offsets that fall, rows out of order, targets outside [0, num_outputs), values of a regression that
// are not finite, targets of the other kind. Ops on a GPU cannot look.
[[nodiscard]] absl::Status CheckBatch(const SideBatch& batch, std::int64_t num_outputs, bool is_regression);

// The same in memory of the arena.
struct DeviceBatch {
  SequenceOffsets offsets;
  const std::int32_t* positions = nullptr;  // [T], inside the sequence
  PredictionTargets targets;
};
// One copy to the device for all of it. `batch` has been checked, and may go when the call returns.
[[nodiscard]] absl::StatusOr<DeviceBatch> UploadBatch(const OpContext& ctx, const SideBatch& batch, Arena* arena);
// The most that UploadBatch takes from the arena.
std::int64_t BatchFloats(std::int64_t num_tokens, std::int64_t num_targets);

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_BATCH_H_
