#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/gather.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"

namespace qst {
namespace cuda {
namespace {

// grad_x[indices[i]] += grad_y[i]; no two indices are equal.
struct ScatterAddBody {
  static constexpr int kWidth = kWideElems<float>;
  DeviceRows<const float> grad_y;
  const std::int32_t* indices;
  DeviceRows<float> grad_x;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float* const to = grad_x.at(indices[row], col);
    float sums[kWidth];
    float grads[kWidth];
    Load<kWide>(to, count, sums);
    Load<kWide>(grad_y.at(row, col), count, grads);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] += grads[i];
    Store<kWide>(sums, count, to);
  }
};

// y[j] = mean or maximum of x[j * d / ds ... (j + 1) * d / ds), columns ascending. One column of y a thread.
template <typename X, typename Y>
struct PoolBody {
  static constexpr int kWidth = 1;
  static constexpr int kReads = kWideElems<X>;
  Pooling pooling;
  DeviceRows<const X> x;
  std::int64_t x_cols;
  std::int64_t y_cols;
  std::int64_t range;  // columns of x for each of y; 0: not all the same
  bool reads_packs;    // every range is whole Packs of kReads
  DeviceRows<Y> y;

  __device__ __forceinline__ void Take(float value, float* result) const {
    if (pooling == Pooling::kAverage) {
      *result += value;
    } else if (value > *result || std::isnan(value)) {
      *result = value;
    }
  }

  template <bool>
  __device__ void Apply(std::int64_t row, std::int64_t col, int) const {
    const std::int64_t first = range > 0 ? col * range : col * x_cols / y_cols;
    const std::int64_t last = range > 0 ? first + range : (col + 1) * x_cols / y_cols;
    // A mean starts at -0, to which any first value adds exactly.
    float result = pooling == Pooling::kAverage ? -0.0f : ToFloat(*x.at(row, first));
    if (reads_packs) {
      for (std::int64_t c = first; c < last; c += kReads) {
        float values[kReads];
        Load<true>(x.at(row, c), kReads, values);
#pragma unroll
        for (int i = 0; i < kReads; ++i) Take(values[i], &result);
      }
    } else {
      for (std::int64_t c = first; c < last; ++c) Take(ToFloat(*x.at(row, c)), &result);
    }
    if (pooling == Pooling::kAverage) result /= static_cast<float>(last - first);
    *y.at(row, col) = FromFloat<Y>(result);
  }
};

}  // namespace

absl::Status GatherRows(Stream& stream, const ConstMatrixView& x, const std::int32_t* indices, const MatrixView& y) {
  return LaunchGather(stream, "GatherRows", x, indices, ConstMatrixView(), nullptr, y);
}

absl::Status ScatterAddRows(Stream& stream, const ConstMatrixView& grad_y, const std::int32_t* indices,
                            const MatrixView& grad_x) {
  const ScatterAddBody body{RowsOf<float>(grad_y), indices, RowsOf<float>(grad_x)};
  return LaunchByRows(stream, body, grad_y.rows, grad_y.cols, {grad_y, grad_x});
}

absl::Status PoolColumns(Stream& stream, Pooling pooling, const ConstMatrixView& x, const MatrixView& y) {
  if (y.dtype != DType::kF32 && y.dtype != x.dtype) {
    return absl::UnimplementedError(absl::StrCat("PoolColumns: x of ", DTypeName(x.dtype), " to y of ",
                                                 DTypeName(y.dtype), "; need f32 or the type of x"));
  }
  const auto launch = [&](auto* x_tag, auto* y_tag) {
    using X = std::remove_pointer_t<decltype(x_tag)>;
    using Y = std::remove_pointer_t<decltype(y_tag)>;
    constexpr int kReads = PoolBody<X, Y>::kReads;
    const std::int64_t range = x.cols % y.cols == 0 ? x.cols / y.cols : 0;
    const bool reads_packs = range > 0 && range % kReads == 0 && AllowsPacks(x, kReads);
    const PoolBody<X, Y> body{pooling, RowsOf<X>(x), x.cols, y.cols, range, reads_packs, RowsOf<Y>(y)};
    return LaunchByRows(stream, body, y.rows, y.cols, {});
  };
  return DispatchFloat(x.dtype, [&](auto* x_tag) {
    if (y.dtype == DType::kF32) return launch(x_tag, static_cast<float*>(nullptr));
    return launch(x_tag, x_tag);
  });
}

}  // namespace cuda
}  // namespace qst
