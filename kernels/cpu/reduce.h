// Sums over rows in one fixed order: chunks of kReduceRows rows, then the chunks ascending.
#ifndef QST_KERNELS_CPU_REDUCE_H_
#define QST_KERNELS_CPU_REDUCE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/exec.h"

namespace qst {
namespace cpu {

// Calls body(begin, end, partial) for every chunk of rows, which adds its sum to the zeroed partial [width],
// and then adds all partial sums to total [width], in order. If total is null, so is every partial.
template <typename Body>
void ReduceRows(const Exec& exec, std::int64_t rows, std::int64_t cost_per_row, std::int64_t width, float* total,
                const Body& body) {
  if (total == nullptr) {
    ParallelRows(exec, rows, cost_per_row, [&](std::int64_t begin, std::int64_t end) { body(begin, end, nullptr); });
    return;
  }
  const std::int64_t num_chunks = (rows + kReduceRows - 1) / kReduceRows;
  std::vector<float> partials(num_chunks * width, 0.0f);
  ParallelRows(exec, num_chunks, cost_per_row * kReduceRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      body(c * kReduceRows, std::min(rows, (c + 1) * kReduceRows), partials.data() + c * width);
    }
  });
  for (std::int64_t c = 0; c < num_chunks; ++c) {
    const float* partial = partials.data() + c * width;
    for (std::int64_t j = 0; j < width; ++j) total[j] += partial[j];
  }
}

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_REDUCE_H_
