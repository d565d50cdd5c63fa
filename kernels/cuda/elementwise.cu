#include "kernels/cuda/elementwise.h"

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

absl::Status CheckOneType(const char* op, std::initializer_list<ConstMatrixView> operands) {
  const DType first = operands.begin()->dtype;
  for (const ConstMatrixView& m : operands) {
    if (m.dtype != first) {
      return absl::UnimplementedError(
          absl::StrCat(op, ": operands of types ", DTypeName(first), " and ", DTypeName(m.dtype), "; need one type"));
    }
  }
  return absl::OkStatus();
}

// Products and sums are fused where fmaf says so and, by __fadd_rn, nowhere else: every path rounds alike.

__device__ __forceinline__ float OnePlusExp(float x) { return __fadd_rn(1.0f, expf(x)); }
__device__ __forceinline__ float Sigmoid(float x) { return Quotient(1.0f, OnePlusExp(-x)); }
__device__ __forceinline__ float Silu(float x) { return Quotient(x, OnePlusExp(-x)); }
// silu'(x) = s (1 + x (1 - s)), s = sigmoid(x).
__device__ __forceinline__ float SiluSlope(float x, float s) { return s * fmaf(x, 1.0f - s, 1.0f); }

// Phi(x), of which GELU's exact form is x Phi(x).
__device__ __forceinline__ float NormalCdf(float x) { return 0.5f * __fadd_rn(1.0f, erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float GeluSlope(float x) {
  const float density = 0.39894228040143268f * expf(-0.5f * x * x);
  return fmaf(x, density, NormalCdf(x));
}

__device__ __forceinline__ float ActivationOf(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;
    case Activation::kSilu:
      return Silu(x);
    case Activation::kGelu:
      return x * NormalCdf(x);
    default:
      return x;
  }
}

__device__ __forceinline__ float ActivationSlope(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu:
      return x > 0.0f ? 1.0f : 0.0f;
    case Activation::kSilu:
      return SiluSlope(x, Sigmoid(x));
    case Activation::kGelu:
      return GeluSlope(x);
    default:
      return 1.0f;
  }
}

// y = activation(x)
template <typename T>
struct ActivateBody {
  static constexpr int kWidth = kWideElems<T>;
  Activation activation;
  DeviceRows<const T> x;
  DeviceRows<T> y;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float values[kWidth];
    Load<kWide>(x.at(row, col), count, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = ActivationOf(activation, values[i]);
    Store<kWide>(values, count, y.at(row, col));
  }
};

// grad_x = grad_y * activation'(x)
template <typename T>
struct ActivateBackwardBody {
  static constexpr int kWidth = kWideElems<T>;
  Activation activation;
  DeviceRows<const T> grad_y;
  DeviceRows<const T> x;
  DeviceRows<T> grad_x;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float grads[kWidth];
    float values[kWidth];
    Load<kWide>(grad_y.at(row, col), count, grads);
    Load<kWide>(x.at(row, col), count, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) grads[i] *= ActivationSlope(activation, values[i]);
    Store<kWide>(grads, count, grad_x.at(row, col));
  }
};

// y = silu(gate) * up
template <typename T>
struct SwiGluBody {
  static constexpr int kWidth = kWideElems<T>;
  DeviceRows<const T> gate;
  DeviceRows<const T> up;
  DeviceRows<T> y;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float gates[kWidth];
    float ups[kWidth];
    Load<kWide>(gate.at(row, col), count, gates);
    Load<kWide>(up.at(row, col), count, ups);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) gates[i] = Silu(gates[i]) * ups[i];
    Store<kWide>(gates, count, y.at(row, col));
  }
};

// grad_gate = grad_y * up * silu'(gate),  grad_up = grad_y * silu(gate)
template <typename T>
struct SwiGluBackwardBody {
  static constexpr int kWidth = kWideElems<T>;
  DeviceRows<const T> grad_y;
  DeviceRows<const T> gate;
  DeviceRows<const T> up;
  DeviceRows<T> grad_gate;
  DeviceRows<T> grad_up;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float grads[kWidth];
    float gates[kWidth];
    float ups[kWidth];
    Load<kWide>(grad_y.at(row, col), count, grads);
    Load<kWide>(gate.at(row, col), count, gates);
    Load<kWide>(up.at(row, col), count, ups);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float s = Sigmoid(gates[i]);
      const float of_up = grads[i] * (gates[i] * s);
      gates[i] = grads[i] * ups[i] * SiluSlope(gates[i], s);
      ups[i] = of_up;
    }
    Store<kWide>(gates, count, grad_gate.at(row, col));
    Store<kWide>(ups, count, grad_up.at(row, col));
  }
};

// y = x, or y + x
template <typename X, typename Y>
struct AddIntoBody {
  static constexpr int kWidth = sizeof(X) > sizeof(Y) ? kWideElems<X> : kWideElems<Y>;
  DeviceRows<const X> x;
  DeviceRows<Y> y;
  bool accumulate;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float values[kWidth];
    Load<kWide>(x.at(row, col), count, values);
    if (accumulate) {
      float sums[kWidth];
      Load<kWide>(y.at(row, col), count, sums);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] += sums[i];
    }
    Store<kWide>(values, count, y.at(row, col));
  }
};

}  // namespace

absl::Status Activate(Stream& stream, Activation activation, const ConstMatrixView& x, const MatrixView& y) {
  QST_RETURN_IF_ERROR(CheckOneType("Activate", {x, y}));
  return DispatchFloat(x.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return LaunchElementwise(stream, ActivateBody<T>{activation, RowsOf<T>(x), RowsOf<T>(y)}, x.rows, x.cols, {x, y});
  });
}

absl::Status ActivateBackward(Stream& stream, Activation activation, const ConstMatrixView& grad_y,
                              const ConstMatrixView& x, const MatrixView& grad_x) {
  QST_RETURN_IF_ERROR(CheckOneType("ActivateBackward", {x, grad_y, grad_x}));
  return DispatchFloat(x.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const ActivateBackwardBody<T> body{activation, RowsOf<T>(grad_y), RowsOf<T>(x), RowsOf<T>(grad_x)};
    return LaunchElementwise(stream, body, x.rows, x.cols, {grad_y, x, grad_x});
  });
}

absl::Status SwiGlu(Stream& stream, const ConstMatrixView& gate, const ConstMatrixView& up, const MatrixView& y) {
  QST_RETURN_IF_ERROR(CheckOneType("SwiGlu", {gate, up, y}));
  return DispatchFloat(gate.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const SwiGluBody<T> body{RowsOf<T>(gate), RowsOf<T>(up), RowsOf<T>(y)};
    return LaunchElementwise(stream, body, gate.rows, gate.cols, {gate, up, y});
  });
}

absl::Status SwiGluBackward(Stream& stream, const ConstMatrixView& grad_y, const ConstMatrixView& gate,
                            const ConstMatrixView& up, const MatrixView& grad_gate, const MatrixView& grad_up) {
  QST_RETURN_IF_ERROR(CheckOneType("SwiGluBackward", {gate, up, grad_y, grad_gate, grad_up}));
  return DispatchFloat(gate.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const SwiGluBackwardBody<T> body{RowsOf<T>(grad_y), RowsOf<T>(gate), RowsOf<T>(up), RowsOf<T>(grad_gate),
                                     RowsOf<T>(grad_up)};
    return LaunchElementwise(stream, body, gate.rows, gate.cols, {grad_y, gate, up, grad_gate, grad_up});
  });
}

absl::Status AddInto(Stream& stream, const ConstMatrixView& x, const MatrixView& y, bool accumulate) {
  return DispatchFloat(x.dtype, [&](auto* x_tag) {
    using X = std::remove_pointer_t<decltype(x_tag)>;
    return DispatchFloat(y.dtype, [&](auto* y_tag) {
      using Y = std::remove_pointer_t<decltype(y_tag)>;
      return LaunchElementwise(stream, AddIntoBody<X, Y>{RowsOf<X>(x), RowsOf<Y>(y), accumulate}, x.rows, x.cols,
                               {x, y});
    });
  });
}

}  // namespace cuda
}  // namespace qst
