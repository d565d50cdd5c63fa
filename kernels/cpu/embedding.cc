#include "kernels/cpu/embedding.h"

#include <vector>

#include "kernels/cpu/convert.h"

namespace qst {
namespace cpu {

void EmbeddingLookup(const Exec& exec, const std::int32_t* tokens, const ConstMatrixView& table,
                     const std::int32_t* positions, const ConstMatrixView& positions_table, const MatrixView& y) {
  const std::int64_t d = y.cols;
  ParallelRows(exec, y.rows, d, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(positions_table.empty() ? 0 : d);
    for (std::int64_t i = begin; i < end; ++i) {
      float* out = y.row<float>(i);
      ToF32(exec, table.dtype, table.row<char>(0) + tokens[i] * table.ld * DTypeBytes(table.dtype), d, out);
      if (positions_table.empty()) continue;
      const float* added = RowAsF32(exec, positions_table, positions[i], scratch.data());
      for (std::int64_t j = 0; j < d; ++j) out[j] += added[j];
    }
  });
}

}  // namespace cpu
}  // namespace qst
