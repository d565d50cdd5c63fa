#include "worker/train/optimizer.h"

#include <cmath>
#include <cstdint>

#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<double> OptimizerStep(const OpContext& ctx, const TrainSettings& settings, double gate_lr_scale,
                                     double learning_rate, std::int64_t step, Parameters* parameters) {
  double sum = 0.0;
  QST_RETURN_IF_ERROR(SumOfSquares(ctx, parameters->gradients(), parameters->size(), &sum));
  const double norm = std::sqrt(sum);
  if (!std::isfinite(norm)) return norm;

  AdamWParams adam;
  adam.beta1 = static_cast<float>(settings.adam_beta1);
  adam.beta2 = static_cast<float>(settings.adam_beta2);
  adam.epsilon = static_cast<float>(settings.adam_epsilon);
  adam.step = step;
  if (settings.clip_norm > 0.0 && norm > settings.clip_norm) {
    adam.grad_scale = static_cast<float>(settings.clip_norm / norm);
  }
  for (const ParameterGroup group :
       {ParameterGroup::kWeights, ParameterGroup::kNormsAndBiases, ParameterGroup::kGates}) {
    const Parameters::Range range = parameters->group_range(group);
    if (range.begin == range.end) continue;
    const double scale = group == ParameterGroup::kGates ? gate_lr_scale : 1.0;
    adam.learning_rate = static_cast<float>(learning_rate * scale);
    adam.weight_decay = group == ParameterGroup::kWeights ? static_cast<float>(settings.weight_decay) : 0.0f;
    QST_RETURN_IF_ERROR(AdamW(ctx, adam, range.end - range.begin, parameters->values() + range.begin,
                              parameters->gradients() + range.begin, parameters->exp_avg() + range.begin,
                              parameters->exp_avg_sq() + range.begin));
  }
  return norm;
}

}  // namespace qst
