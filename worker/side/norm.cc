#include "worker/side/norm.h"

#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<NormStatistics> AllocateNormStatistics(NormKind kind, std::int64_t num_tokens, Arena* arena) {
  NormStatistics statistics;
  if (kind == NormKind::kNone) return statistics;
  QST_ASSIGN_OR_RETURN(statistics.inverse, arena->Floats(num_tokens));
  if (kind == NormKind::kLayer) {
    QST_ASSIGN_OR_RETURN(statistics.mean, arena->Floats(num_tokens));
  }
  return statistics;
}

std::int64_t NormFloatsPerToken(NormKind kind) { return kind == NormKind::kNone ? 0 : kind == NormKind::kRms ? 1 : 2; }

absl::Status NormForward(const OpContext& ctx, NormKind kind, const ConstMatrixView& x, const ConstMatrixView& weight,
                         const ConstMatrixView& bias, float eps, const MatrixView& y,
                         const NormStatistics& statistics) {
  switch (kind) {
    case NormKind::kRms:
      return RmsNorm(ctx, x, weight, eps, y, statistics.inverse);
    case NormKind::kLayer:
      return LayerNorm(ctx, x, weight, bias, eps, y, statistics.mean, statistics.inverse);
    case NormKind::kNone:
      break;
  }
  return x.data == y.data ? absl::OkStatus() : AddInto(ctx, x, y, /*accumulate=*/false);
}

absl::Status NormBackward(const OpContext& ctx, NormKind kind, const ConstMatrixView& grad_y, const ConstMatrixView& x,
                          const NormTensors& values, const NormStatistics& statistics, const MatrixView& grad_x,
                          const NormTensors& gradients, bool accumulate) {
  if (kind == NormKind::kRms) {
    return RmsNormBackward(ctx, grad_y, x, values.weight, statistics.inverse, grad_x, gradients.weight, accumulate);
  }
  QST_CHECK(kind == NormKind::kLayer);
  return LayerNormBackward(ctx, grad_y, x, values.weight, statistics.mean, statistics.inverse, grad_x, gradients.weight,
                           gradients.bias, accumulate);
}

}  // namespace qst
