#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "absl/status/status.h"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

// m of a column: mix itself or its sigmoid; one value for all columns, or one for each.
struct Mix {
  const float* values;
  bool is_shared;
  bool apply_sigmoid;

  __device__ __forceinline__ float Of(float value) const {
    return apply_sigmoid ? 1.0f / __fadd_rn(1.0f, expf(-value)) : value;
  }
  __device__ __forceinline__ float At(std::int64_t col) const { return Of(values[is_shared ? 0 : col]); }

  template <bool kWide, int kCount>
  __device__ __forceinline__ void Load(std::int64_t col, int count, float (&to)[kCount]) const {
    if (is_shared) {
      const float m = Of(values[0]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = m;
      return;
    }
    cuda::Load<kWide>(values + col, count, to);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = Of(to[i]);
  }
};

Mix MixOf(const ConstMatrixView& mix, bool apply_sigmoid) {
  return Mix{mix.row<float>(0), mix.cols == 1, apply_sigmoid};
}

// As LaunchElementwise where mix is shared; else the columns matter, and mix is loaded in Packs too.
template <typename Body>
absl::Status LaunchMixed(Stream& stream, const Body& body, const ConstMatrixView& mix, const ConstMatrixView& a,
                         const ConstMatrixView& b, const ConstMatrixView& c) {
  if (mix.cols == 1) return LaunchElementwise(stream, body, a.rows, a.cols, {a, b, c});
  return LaunchByRows(stream, body, a.rows, a.cols, {a, b, c, mix});
}

// out = (1 - m) a + m b
template <typename A, typename B, typename Out>
struct GateMixBody {
  static constexpr int kWidth = sizeof(A) + sizeof(B) + sizeof(Out) == 6 ? 8 : 4;
  DeviceRows<const A> a;
  DeviceRows<const B> b;
  Mix mix;
  DeviceRows<Out> out;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float as[kWidth];
    float bs[kWidth];
    float ms[kWidth];
    Load<kWide>(a.at(row, col), count, as);
    Load<kWide>(b.at(row, col), count, bs);
    mix.Load<kWide>(col, count, ms);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) as[i] = fmaf(ms[i], bs[i], (1.0f - ms[i]) * as[i]);
    Store<kWide>(as, count, out.at(row, col));
  }
};

// grad_a = (1 - m) grad_out,  grad_b = m grad_out
struct GateMixBackwardBody {
  static constexpr int kWidth = kWideElems<float>;
  DeviceRows<const float> grad_out;
  Mix mix;
  DeviceRows<float> grad_a;  // without data: not wanted
  DeviceRows<float> grad_b;

  template <bool kWide>
  __device__ void Apply(std::int64_t row, std::int64_t col, int count) const {
    float grads[kWidth];
    float ms[kWidth];
    float out[kWidth];
    Load<kWide>(grad_out.at(row, col), count, grads);
    mix.Load<kWide>(col, count, ms);
    if (grad_b.data != nullptr) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) out[i] = ms[i] * grads[i];
      Store<kWide>(out, count, grad_b.at(row, col));
    }
    if (grad_a.data != nullptr) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) out[i] = (1.0f - ms[i]) * grads[i];
      Store<kWide>(out, count, grad_a.at(row, col));
    }
  }
};

// grad_mix += slope * sum over rows of grad_out (b - a),  slope = m (1 - m) behind a sigmoid, else 1
template <typename A, typename B>
struct GradMixTerm {
  static constexpr int kSums = 1;
  DeviceRows<const float> grad_out;
  DeviceRows<const A> a;
  DeviceRows<const B> b;
  Mix mix;
  float* grad_mix;

  __device__ __forceinline__ void Add(std::int64_t row, std::int64_t col, float (&sums)[1]) const {
    sums[0] = fmaf(*grad_out.at(row, col), ToFloat(*b.at(row, col)) - ToFloat(*a.at(row, col)), sums[0]);
  }
  __device__ __forceinline__ void Finish(int, std::int64_t col, float total) const {
    const float m = mix.At(col);
    grad_mix[col] += mix.apply_sigmoid ? total * (m * (1.0f - m)) : total;
  }
};

// The 16-bit type among the operands, if any; kUnimplemented if both occur.
absl::StatusOr<DType> HalfTypeOf(const char* op, std::initializer_list<ConstMatrixView> operands) {
  DType half = DType::kF32;
  for (const ConstMatrixView& m : operands) {
    if (m.dtype == DType::kF32) continue;
    if (half != DType::kF32 && half != m.dtype) {
      return absl::UnimplementedError(absl::StrCat(op, ": operands of types ", DTypeName(half), " and ",
                                                   DTypeName(m.dtype), "; need f32 or one 16-bit type"));
    }
    half = m.dtype;
  }
  return half;
}

// visit with a null pointer of float or of Half.
template <typename Half, typename Visit>
absl::Status DispatchHalf(DType dtype, const Visit& visit) {
  if (dtype == DType::kF32) return visit(static_cast<float*>(nullptr));
  return visit(static_cast<Half*>(nullptr));
}

template <typename Half>
absl::Status LaunchGateMix(Stream& stream, const ConstMatrixView& a, const ConstMatrixView& b,
                           const ConstMatrixView& mix, bool apply_sigmoid, const MatrixView& out) {
  return DispatchHalf<Half>(a.dtype, [&](auto* a_tag) {
    using A = std::remove_pointer_t<decltype(a_tag)>;
    return DispatchHalf<Half>(b.dtype, [&](auto* b_tag) {
      using B = std::remove_pointer_t<decltype(b_tag)>;
      return DispatchHalf<Half>(out.dtype, [&](auto* out_tag) {
        using Out = std::remove_pointer_t<decltype(out_tag)>;
        const GateMixBody<A, B, Out> body{RowsOf<A>(a), RowsOf<B>(b), MixOf(mix, apply_sigmoid), RowsOf<Out>(out)};
        return LaunchMixed(stream, body, mix, out, a, b);
      });
    });
  });
}

template <typename Half>
absl::Status SumGradMix(Stream& stream, const ConstMatrixView& grad_out, const ConstMatrixView& a,
                        const ConstMatrixView& b, const ConstMatrixView& mix, bool apply_sigmoid, float* grad_mix) {
  return DispatchHalf<Half>(a.dtype, [&](auto* a_tag) {
    using A = std::remove_pointer_t<decltype(a_tag)>;
    return DispatchHalf<Half>(b.dtype, [&](auto* b_tag) {
      using B = std::remove_pointer_t<decltype(b_tag)>;
      const GradMixTerm<A, B> term{RowsOf<float>(grad_out), RowsOf<A>(a), RowsOf<B>(b), MixOf(mix, apply_sigmoid),
                                   grad_mix};
      if (mix.cols == 1) return SumColumns<true>(stream, term, grad_out.rows, grad_out.cols);
      return SumColumns<false>(stream, term, grad_out.rows, grad_out.cols);
    });
  });
}

}  // namespace

absl::Status GateMix(Stream& stream, const ConstMatrixView& a, const ConstMatrixView& b, const ConstMatrixView& mix,
                     bool apply_sigmoid, const MatrixView& out) {
  QST_ASSIGN_OR_RETURN(const DType half, HalfTypeOf("GateMix", {a, b, out}));
  if (half == DType::kF16) return LaunchGateMix<F16>(stream, a, b, mix, apply_sigmoid, out);
  return LaunchGateMix<BF16>(stream, a, b, mix, apply_sigmoid, out);
}

absl::Status GateMixBackward(Stream& stream, const ConstMatrixView& grad_out, const ConstMatrixView& a,
                             const ConstMatrixView& b, const ConstMatrixView& mix, bool apply_sigmoid,
                             const MatrixView& grad_a, const MatrixView& grad_b, const MatrixView& grad_mix) {
  // First, since grad_a or grad_b may lie over grad_out.
  if (!grad_mix.empty()) {
    QST_ASSIGN_OR_RETURN(const DType half, HalfTypeOf("GateMixBackward", {a, b}));
    float* const to = grad_mix.row<float>(0);
    QST_RETURN_IF_ERROR(half == DType::kF16 ? SumGradMix<F16>(stream, grad_out, a, b, mix, apply_sigmoid, to)
                                            : SumGradMix<BF16>(stream, grad_out, a, b, mix, apply_sigmoid, to));
  }
  if (grad_a.empty() && grad_b.empty()) return absl::OkStatus();
  const ConstMatrixView of_a = grad_a.empty() ? grad_out : ConstMatrixView(grad_a);
  const ConstMatrixView of_b = grad_b.empty() ? grad_out : ConstMatrixView(grad_b);
  const GateMixBackwardBody body{RowsOf<float>(grad_out), MixOf(mix, apply_sigmoid),
                                 grad_a.empty() ? DeviceRows<float>{} : RowsOf<float>(grad_a),
                                 grad_b.empty() ? DeviceRows<float>{} : RowsOf<float>(grad_b)};
  return LaunchMixed(stream, body, mix, grad_out, of_a, of_b);
}

}  // namespace cuda
}  // namespace qst
