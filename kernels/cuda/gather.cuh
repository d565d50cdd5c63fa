// y[i] = table[indices[i]] (+ added[added_indices[i]]), as embeddings and GatherRows are.
#ifndef QST_KERNELS_CUDA_GATHER_CUH_
#define QST_KERNELS_CUDA_GATHER_CUH_

#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"

namespace qst {
namespace cuda {

template <typename T, typename Y>
struct GatherBody {
  static constexpr int kWidth = kWideElems<Y>;
  DeviceRows<const T> table;
  const std::int32_t* indices;
  DeviceRows<const T> added;  // without data: nothing is added
  const std::int32_t* added_indices;
  DeviceRows<Y> y;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float values[kWidth];
    Load<kWide>(table.at(indices[row], col), count, values);
    if (added.data != nullptr) {
      float others[kWidth];
      Load<kWide>(added.at(added_indices[row], col), count, others);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] += others[i];
    }
    Store<kWide>(values, count, y.at(row, col));
  }
};

// y f32 or of the table's type. `added` empty, or of the table's type.
inline absl::Status LaunchGather(Stream& stream, const char* op, const ConstMatrixView& table,
                                 const std::int32_t* indices, const ConstMatrixView& added,
                                 const std::int32_t* added_indices, const MatrixView& y) {
  if (y.dtype != DType::kF32 && y.dtype != table.dtype) {
    return absl::UnimplementedError(absl::StrCat(op, ": rows of ", DTypeName(table.dtype), " to y of ",
                                                 DTypeName(y.dtype), "; need f32 or the type of the rows"));
  }
  if (!added.empty() && added.dtype != table.dtype) {
    return absl::UnimplementedError(absl::StrCat(op, ": tables of types ", DTypeName(table.dtype), " and ",
                                                 DTypeName(added.dtype), "; need one type"));
  }
  const auto launch = [&](auto* t_tag, auto* y_tag) {
    using T = std::remove_pointer_t<decltype(t_tag)>;
    using Y = std::remove_pointer_t<decltype(y_tag)>;
    const GatherBody<T, Y> body{RowsOf<T>(table), indices, added.empty() ? DeviceRows<const T>{} : RowsOf<T>(added),
                                added_indices, RowsOf<Y>(y)};
    return LaunchByRows(stream, body, y.rows, y.cols, {table, added.empty() ? table : added, y});
  };
  return DispatchFloat(table.dtype, [&](auto* t_tag) {
    if (y.dtype == DType::kF32) return launch(t_tag, static_cast<float*>(nullptr));
    return launch(t_tag, t_tag);
  });
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GATHER_CUH_
