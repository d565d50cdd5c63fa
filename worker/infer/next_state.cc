#include "worker/infer/next_state.h"

#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::Status BackboneNextState::Compute(const OpContext& ctx, std::int64_t num_tokens, const HiddenStateSource& source,
                                        const MatrixView& out) {
  QST_ASSIGN_OR_RETURN(const ConstMatrixView last, source(num_layers_));
  return RmsNorm(ctx, Rows(last, num_tokens - 1, num_tokens), frozen_.final_norm, frozen_.norm_eps, out, nullptr);
}

}  // namespace qst
