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
  std::int64_t num_rows = 0;  // tokens of the shape
  SequenceOffsets offsets;
  const std::int32_t* positions = nullptr;  // [num_rows], inside the sequence
  PredictionTargets targets;
};
// What the layers of a side network are given: at least what the batch has. Tokens beyond the batch's make one sequence
// of their own, behind the others; sequences that are still missing are empty.
struct BatchShape {
  std::int64_t num_tokens = 0;
  std::int64_t num_sequences = 0;
};
BatchShape ShapeOf(const SideBatch& batch);
// The least shape of a coarse grid that holds the batch, so that micro-batches of nearly the same size become one
// shape. Gradients keep their bits: rows of zeros are added to sums, but neither to a matrix-vector product's few
// tokens nor to a sum's whole chunks, where ops would go another way. Tokens beyond max_tokens are not added.
BatchShape RoundedShapeOf(const SideBatch& batch, std::int64_t max_tokens);

// One copy to the device for all of it. `batch` has been checked, and may go when the call returns. What is taken from
// the arena depends on the number of tokens alone, unless there are more sequences than tokens.
[[nodiscard]] absl::StatusOr<DeviceBatch> UploadBatch(const OpContext& ctx, const SideBatch& batch,
                                                      const BatchShape& shape, Arena* arena);
// Floats that UploadBatch takes from the arena.
std::int64_t BatchFloats(std::int64_t num_tokens);

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_BATCH_H_
