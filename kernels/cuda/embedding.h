// Embedding lookup on CUDA. Arguments as in kernels/ops.h, already checked; enqueued on the stream.
#ifndef QST_KERNELS_CUDA_EMBEDDING_H_
#define QST_KERNELS_CUDA_EMBEDDING_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// Tables f32, bf16 or f16, both of one type; y f32 or as they are. Indices outside their table are not noticed.
absl::Status EmbeddingLookup(Stream& stream, const std::int32_t* tokens, const ConstMatrixView& table,
                             const std::int32_t* positions, const ConstMatrixView& positions_table,
                             const MatrixView& y);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_EMBEDDING_H_
