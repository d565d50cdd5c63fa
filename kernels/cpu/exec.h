// How a CPU op runs: threads and instruction set, after the op's checks.
#ifndef QST_KERNELS_CPU_EXEC_H_
#define QST_KERNELS_CPU_EXEC_H_

#include <algorithm>
#include <cstdint>

#include "kernels/device.h"

namespace qst {
namespace cpu {

struct Exec {
  ThreadPool* threads = nullptr;
  bool use_avx2 = false;
};

// Sums over rows (weight gradients) go through chunks of this many rows, whose partial sums are then added
// in ascending order. Fixed, so that the number of threads changes no bit.
constexpr std::int64_t kReduceRows = 128;

// Calls body(begin, end) on ranges of rows, none so small that handing it to a thread costs more than its
// work. `cost_per_row` is in simple element operations.
template <typename Body>
void ParallelRows(const Exec& exec, std::int64_t rows, std::int64_t cost_per_row, const Body& body) {
  constexpr std::int64_t kMinCost = 16384;
  const std::int64_t grain = std::max<std::int64_t>(1, kMinCost / std::max<std::int64_t>(1, cost_per_row));
  exec.threads->ParallelFor(rows, grain, body);
}

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_EXEC_H_
