#include "kernels/cpu/rotary.h"

#include <cmath>
#include <vector>

#include "kernels/cpu/rotary_kernels.h"

namespace qst {
namespace cpu {
namespace portable {

void CosSin(std::int32_t position, const float* inv_freq, std::int64_t half, bool inverse, float* cos, float* sin) {
  for (std::int64_t j = 0; j < half; ++j) {
    const double angle = static_cast<double>(position) * static_cast<double>(inv_freq[j]);
    cos[j] = static_cast<float>(std::cos(angle));
    sin[j] = static_cast<float>(inverse ? -std::sin(angle) : std::sin(angle));
  }
}

void RotateHead(const float* cos, const float* sin, std::int64_t half, float* a, float* b) {
  for (std::int64_t j = 0; j < half; ++j) {
    const float first = a[j];
    const float second = b[j];
    a[j] = first * cos[j] - second * sin[j];
    b[j] = second * cos[j] + first * sin[j];
  }
}

}  // namespace portable

void Rotary(const Exec& exec, const MatrixView& x, std::int64_t num_heads, const std::int32_t* positions,
            const float* inv_freq, bool inverse) {
  const auto cos_sin = exec.use_avx2 ? &avx2::CosSin : &portable::CosSin;
  const auto rotate = exec.use_avx2 ? &avx2::RotateHead : &portable::RotateHead;
  const std::int64_t head_dim = x.cols / num_heads;
  const std::int64_t half = head_dim / 2;
  constexpr std::int64_t kTrigonometryCost = 16;  // of one angle, in simple operations
  ParallelRows(exec, x.rows, x.cols + half * kTrigonometryCost, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> cos(half);
    std::vector<float> sin(half);
    for (std::int64_t i = begin; i < end; ++i) {
      cos_sin(positions[i], inv_freq, half, inverse, cos.data(), sin.data());
      for (std::int64_t h = 0; h < num_heads; ++h) {
        float* head = x.row<float>(i) + h * head_dim;
        rotate(cos.data(), sin.data(), half, head, head + half);
      }
    }
  });
}

}  // namespace cpu
}  // namespace qst
