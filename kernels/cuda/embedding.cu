#include "kernels/cuda/embedding.h"

#include "kernels/cuda/gather.cuh"

namespace qst {
namespace cuda {

absl::Status EmbeddingLookup(Stream& stream, const std::int32_t* tokens, const ConstMatrixView& table,
                             const std::int32_t* positions, const ConstMatrixView& positions_table,
                             const MatrixView& y) {
  return LaunchGather(stream, "EmbeddingLookup", table, tokens, positions_table, positions, y);
}

}  // namespace cuda
}  // namespace qst
