// Embedding lookup on CPU. Arguments as in kernels/ops.h, already checked.
#ifndef QST_KERNELS_CPU_EMBEDDING_H_
#define QST_KERNELS_CPU_EMBEDDING_H_

#include <cstdint>

#include "kernels/cpu/exec.h"
#include "kernels/tensor.h"

namespace qst {
namespace cpu {

// positions_table may be empty.
void EmbeddingLookup(const Exec& exec, const std::int32_t* tokens, const ConstMatrixView& table,
                     const std::int32_t* positions, const ConstMatrixView& positions_table, const MatrixView& y);

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_EMBEDDING_H_
