#include "worker/side/side_batch.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Grid of rounded shapes: some 20 of them for short instructions in micro-batches of 2,048 tokens (README.md).
constexpr std::int64_t kTokenStep = 128;
constexpr std::int64_t kSequenceStep = 16;

}  // namespace

absl::Status CheckBatch(const SideBatch& batch, std::int64_t num_outputs, bool is_regression) {
  const bool offsets_ok = batch.offsets.size() >= 2 && batch.offsets.front() == 0 &&
                          std::is_sorted(batch.offsets.begin(), batch.offsets.end());
  if (!offsets_ok) return absl::InvalidArgumentError("side network: sequence offsets must start at 0 and never fall");
  const std::size_t num_targets = is_regression ? batch.values.size() : batch.targets.size();
  if (batch.rows.size() != num_targets || (is_regression ? batch.targets.size() : batch.values.size()) > 0) {
    return absl::InvalidArgumentError(absl::StrCat("side network: ", batch.rows.size(), " rows but ",
                                                   batch.targets.size(), " targets and ", batch.values.size(),
                                                   " values"));
  }
  for (std::size_t i = 0; i < batch.rows.size(); ++i) {
    if (batch.rows[i] < (i == 0 ? 0 : batch.rows[i - 1] + 1) || batch.rows[i] >= batch.num_tokens()) {
      return absl::InvalidArgumentError(absl::StrCat("side network: row ", batch.rows[i], " of target ", i,
                                                     " is out of order or not below ", batch.num_tokens()));
    }
    if (is_regression) {
      if (std::isfinite(batch.values[i])) continue;
      return absl::InvalidArgumentError(absl::StrCat("side network: value ", i, " is not a finite number"));
    }
    if (batch.targets[i] < 0 || batch.targets[i] >= num_outputs) {
      return absl::InvalidArgumentError(
          absl::StrCat("side network: target ", i, " is ", batch.targets[i], ", outside [0, ", num_outputs, ")"));
    }
  }
  return absl::OkStatus();
}

BatchShape ShapeOf(const SideBatch& batch) {
  return {batch.num_tokens(), static_cast<std::int64_t>(batch.offsets.size()) - 1};
}

BatchShape RoundedShapeOf(const SideBatch& batch, std::int64_t max_tokens) {
  const BatchShape exact = ShapeOf(batch);
  const std::int64_t num_tokens = exact.num_tokens;
  BatchShape shape;
  // With room for the sequence that the added tokens make.
  shape.num_sequences = (exact.num_sequences + 1 + kSequenceStep - 1) / kSequenceStep * kSequenceStep;
  shape.num_tokens = (num_tokens + kTokenStep - 1) / kTokenStep * kTokenStep;
  if (num_tokens % cuda::kGradChunkRows != 0) {
    const std::int64_t last_of_chunk =
        num_tokens / cuda::kGradChunkRows * cuda::kGradChunkRows + cuda::kGradChunkRows - 1;
    shape.num_tokens = std::min(shape.num_tokens, last_of_chunk);
  }
  if (num_tokens <= cuda::kMaxFewTokens) shape.num_tokens = num_tokens;
  shape.num_tokens = std::max(num_tokens, std::min(shape.num_tokens, max_tokens));
  return shape;
}

absl::StatusOr<DeviceBatch> UploadBatch(const OpContext& ctx, const SideBatch& batch, const BatchShape& shape,
                                        Arena* arena) {
  // Packed: offsets, positions, rows, targets or the values' bits.
  std::vector<std::int32_t> packed = batch.offsets;
  packed.resize(static_cast<std::size_t>(shape.num_sequences + 1), static_cast<std::int32_t>(shape.num_tokens));
  const std::size_t positions_at = packed.size();
  for (std::size_t s = 0; s + 1 < positions_at; ++s) {
    for (std::int32_t t = packed[s]; t < packed[s + 1]; ++t) packed.push_back(t - packed[s]);
  }
  const std::size_t rows_at = packed.size();
  packed.insert(packed.end(), batch.rows.begin(), batch.rows.end());
  packed.insert(packed.end(), batch.targets.begin(), batch.targets.end());
  packed.resize(packed.size() + batch.values.size());
  if (!batch.values.empty()) {
    std::memcpy(&packed[rows_at + batch.rows.size()], batch.values.data(), batch.values.size() * sizeof(float));
  }

  const auto size = static_cast<std::int64_t>(packed.size());
  QST_ASSIGN_OR_RETURN(std::int32_t* const memory, arena->Ints(std::max(size, BatchFloats(shape.num_tokens))));
  QST_RETURN_IF_ERROR(Upload(ctx, packed.data(), size * static_cast<std::int64_t>(sizeof(std::int32_t)), memory));
  DeviceBatch out;
  out.num_rows = shape.num_tokens;
  out.offsets = {memory, shape.num_sequences};
  out.positions = memory + positions_at;
  std::int32_t* const targets = memory + rows_at + batch.rows.size();
  out.targets.rows = memory + rows_at;
  out.targets.num = batch.num_targets();
  if (batch.values.empty()) {
    out.targets.targets = targets;
  } else {
    out.targets.values = static_cast<const float*>(static_cast<const void*>(targets));
  }
  return out;
}

std::int64_t BatchFloats(std::int64_t num_tokens) {
  // Training has no empty sequences but those of a rounded shape; each token may have a target.
  return 4 * num_tokens + 1 + kSequenceStep;
}

}  // namespace qst
