#include "kernels/cpu/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/optimizer_kernels.h"

namespace qst {
namespace cpu {
namespace portable {

void AdamWRange(const AdamWFactors& f, std::int64_t n, float* param, const float* grad, float* exp_avg,
                float* exp_avg_sq) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * f.grad_scale;
    exp_avg[i] = f.beta1 * exp_avg[i] + f.one_minus_beta1 * g;
    exp_avg_sq[i] = f.beta2 * exp_avg_sq[i] + f.one_minus_beta2 * (g * g);
    const float step = exp_avg[i] * f.correction1 / (std::sqrt(exp_avg_sq[i] * f.correction2) + f.epsilon);
    param[i] -= f.learning_rate * (step + f.weight_decay * param[i]);
  }
}

double SumOfSquaresRange(const float* x, std::int64_t n) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

}  // namespace portable

namespace {

// s of ops.h into *scale; false: the norm is not finite.
bool EvaluateScale(const AdamWParams& params, float* scale) {
  *scale = params.grad_scale;
  if (params.sum_of_squares == nullptr) return true;
  const double norm = std::sqrt(*params.sum_of_squares);
  if (!std::isfinite(norm)) return false;
  if (params.clip_norm > 0.0 && norm > params.clip_norm) {
    *scale = static_cast<float>(static_cast<double>(params.grad_scale) * (params.clip_norm / norm));
  }
  return true;
}

}  // namespace

void AdamW(const Exec& exec, const AdamWParams& params, std::int64_t n, float* param, const float* grad, float* exp_avg,
           float* exp_avg_sq) {
  const double step = static_cast<double>(params.step);
  const double beta1 = static_cast<double>(params.beta1);
  const double beta2 = static_cast<double>(params.beta2);
  AdamWFactors f;
  if (!EvaluateScale(params, &f.grad_scale)) return;
  f.learning_rate = params.learning_rate;
  f.beta1 = params.beta1;
  f.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  f.beta2 = params.beta2;
  f.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  f.epsilon = params.epsilon;
  f.weight_decay = params.weight_decay;
  f.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step)));
  f.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step)));
  const auto range = exec.use_avx2 ? &avx2::AdamWRange : &portable::AdamWRange;
  constexpr std::int64_t kGrain = 8192;
  exec.threads->ParallelFor(n, kGrain, [&](std::int64_t begin, std::int64_t end) {
    range(f, end - begin, param + begin, grad + begin, exp_avg + begin, exp_avg_sq + begin);
  });
}

double SumOfSquares(const Exec& exec, const float* x, std::int64_t n) {
  // Chunks of fixed size, then the chunks ascending: the same bits on any number of threads.
  constexpr std::int64_t kChunk = 8192;
  const auto range = exec.use_avx2 ? &avx2::SumOfSquaresRange : &portable::SumOfSquaresRange;
  std::vector<double> partials((n + kChunk - 1) / kChunk);
  exec.threads->ParallelFor(partials.size(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) partials[c] = range(x + c * kChunk, std::min(kChunk, n - c * kChunk));
  });
  double sum = 0.0;
  for (const double partial : partials) sum += partial;
  return sum;
}

}  // namespace cpu
}  // namespace qst
