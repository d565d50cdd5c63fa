// What the host sees of a matrix that lies where ops run: for the search for what went wrong, and for tests.
#ifndef QST_WORKER_SIDE_HOST_MATRIX_H_
#define QST_WORKER_SIDE_HOST_MATRIX_H_

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace qst {

// The elements (f32, f16 or bf16) as float32, row by row without gaps. Waits for what is enqueued in the context.
absl::StatusOr<std::vector<float>> DownloadMatrix(const OpContext& ctx, const ConstMatrixView& matrix);

}  // namespace qst

#endif  // QST_WORKER_SIDE_HOST_MATRIX_H_
