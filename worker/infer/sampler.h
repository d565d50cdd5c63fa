// Choosing the next token from logits.
#ifndef QST_WORKER_INFER_SAMPLER_H_
#define QST_WORKER_INFER_SAMPLER_H_

#include <cstdint>

namespace qst {

// Temperature 0 takes the first of the largest logits; otherwise a token is drawn from softmax(logits / temperature).
// The same seed and logits give the same tokens on every machine.
class Sampler {
 public:
  Sampler(double temperature, std::uint64_t seed) : temperature_(temperature), state_(seed) {}

  // logits [num], num >= 1. NaN counts as less than anything.
  std::int32_t Next(const float* logits, std::int64_t num);

 private:
  // Uniform in [0, 1).
  double Uniform();

  const double temperature_;
  std::uint64_t state_;
};

}  // namespace qst

#endif  // QST_WORKER_INFER_SAMPLER_H_
