#include "worker/infer/sampler.h"

#include <cmath>

namespace qst {

double Sampler::Uniform() {
  // splitmix64
  state_ += 0x9E3779B97F4A7C15ull;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

std::int32_t Sampler::Next(const float* logits, std::int64_t num) {
  std::int64_t best = 0;
  for (std::int64_t i = 1; i < num; ++i) {
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  }
  if (temperature_ <= 0.0) return static_cast<std::int32_t>(best);
  const double top = logits[best];
  const auto weight = [&](std::int64_t i) {
    const double w = std::exp((static_cast<double>(logits[i]) - top) / temperature_);
    return std::isnan(w) ? 0.0 : w;
  };
  double total = 0.0;
  for (std::int64_t i = 0; i < num; ++i) total += weight(i);
  double left = Uniform() * total;
  for (std::int64_t i = 0; i < num; ++i) {
    const double w = weight(i);
    if (left < w) return static_cast<std::int32_t>(i);
    left -= w;
  }
  return static_cast<std::int32_t>(best);
}

}  // namespace qst
