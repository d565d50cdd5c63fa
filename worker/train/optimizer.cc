#include "worker/train/optimizer.h"

#include <cmath>
#include <cstdint>

#include "absl/memory/memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<std::unique_ptr<Optimizer>> Optimizer::Create(const OpContext& ctx, const TrainSettings& settings,
                                                             double gate_lr_scale, Parameters* parameters) {
  auto optimizer = absl::WrapUnique(new Optimizer(ctx, settings, gate_lr_scale, parameters));
  const double none = 0.0;
  QST_ASSIGN_OR_RETURN(optimizer->sum_of_squares_, DeviceMemory::CopyOf(ctx, &none, sizeof(none)));
  return optimizer;
}

Optimizer::~Optimizer() { Synchronize(ctx_).IgnoreError(); }

absl::Status Optimizer::Step(double learning_rate, std::int64_t step) {
  float* const gradients = parameters_->data(ParameterBuffer::kGradients);
  QST_RETURN_IF_ERROR(SumOfSquares(ctx_, gradients, parameters_->size(), sum_of_squares_.as<double>()));
  AdamWParams adam;
  adam.beta1 = static_cast<float>(settings_.adam_beta1);
  adam.beta2 = static_cast<float>(settings_.adam_beta2);
  adam.epsilon = static_cast<float>(settings_.adam_epsilon);
  adam.step = step;
  // The norm is where the update is: no copy to the host lies between them.
  adam.sum_of_squares = sum_of_squares_.as<double>();
  adam.clip_norm = settings_.clip_norm;
  for (const ParameterGroup group :
       {ParameterGroup::kWeights, ParameterGroup::kNormsAndBiases, ParameterGroup::kGates}) {
    const Parameters::Range range = parameters_->group_range(group);
    if (range.begin == range.end) continue;
    const double scale = group == ParameterGroup::kGates ? gate_lr_scale_ : 1.0;
    adam.learning_rate = static_cast<float>(learning_rate * scale);
    adam.weight_decay = group == ParameterGroup::kWeights ? static_cast<float>(settings_.weight_decay) : 0.0f;
    QST_RETURN_IF_ERROR(AdamW(ctx_, adam, range.end - range.begin,
                              parameters_->data(ParameterBuffer::kValues) + range.begin, gradients + range.begin,
                              parameters_->data(ParameterBuffer::kExpAvg) + range.begin,
                              parameters_->data(ParameterBuffer::kExpAvgSq) + range.begin));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> Optimizer::FetchGradientNorm() const {
  double sum = 0.0;
  QST_RETURN_IF_ERROR(Download(ctx_, sum_of_squares_.data(), sizeof(sum), &sum));
  return std::sqrt(sum);
}

}  // namespace qst
