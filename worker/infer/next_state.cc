#include "worker/infer/next_state.h"

#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::Status BackboneNextState::Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                                        const MatrixView& out) {
  QST_ASSIGN_OR_RETURN(const ConstMatrixView last, source(num_layers_));
  const std::int64_t width_bytes = last.cols * static_cast<std::int64_t>(sizeof(float));
  if (state_.size_bytes() < width_bytes) {
    QST_ASSIGN_OR_RETURN(state_, DeviceMemory::Allocate(ctx, width_bytes));
  }
  const MatrixView state = Matrix(state_.as<float>(), 1, last.cols);
  QST_RETURN_IF_ERROR(AddInto(ctx, Rows(last, num_tokens - 1, num_tokens), state, /*accumulate=*/false));
  return BackboneOutput(ctx, frozen_, state, out);
}

}  // namespace qst
