// Operands of benchmarks on a GPU.
#ifndef QST_TESTS_BENCH_DEVICE_MATRIX_H_
#define QST_TESTS_BENCH_DEVICE_MATRIX_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"

namespace qst {

// A matrix on the device; its values are of both signs, with no subnormal among them.
class DeviceMatrix {
 public:
  static absl::StatusOr<DeviceMatrix> Create(const OpContext& ctx, std::int64_t rows, std::int64_t cols,
                                             DType dtype = DType::kF32) {
    DeviceMatrix m;
    const std::vector<float> values = Values(rows * cols);
    QST_ASSIGN_OR_RETURN(m.memory_, DeviceMemory::CopyOf(ctx, values.data(), rows * cols * DTypeBytes(DType::kF32)));
    m.view_ = Matrix(m.memory_.as<float>(), rows, cols);
    if (dtype == DType::kF32) return m;
    DeviceMatrix narrow;
    QST_ASSIGN_OR_RETURN(narrow.memory_, DeviceMemory::Allocate(ctx, rows * cols * DTypeBytes(dtype)));
    narrow.view_ = MatrixView{narrow.memory_.data(), dtype, rows, cols, cols};
    QST_RETURN_IF_ERROR(AddInto(ctx, m.view_, narrow.view_, /*accumulate=*/false));
    QST_RETURN_IF_ERROR(Synchronize(ctx));
    return narrow;
  }

  const MatrixView& view() const { return view_; }
  float* data() const { return view_.row<float>(0); }

 private:
  static std::vector<float> Values(std::int64_t n) {
    std::vector<float> values(n);
    std::uint32_t state = 1;
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    }
    return values;
  }

  DeviceMemory memory_;
  MatrixView view_;
};

}  // namespace qst

#endif  // QST_TESTS_BENCH_DEVICE_MATRIX_H_
