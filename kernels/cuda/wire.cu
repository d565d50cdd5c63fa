#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/wire.h"
#include "kernels/wire_rows.h"

namespace qst {
namespace cuda {
namespace {

// A block a row, a group of adjacent elements a thread at a time.
constexpr int kThreads = 256;
constexpr int kGroup = 4;

template <typename T>
struct alignas(kGroup * sizeof(T)) Group {
  T values[kGroup];
};

// Elements j ... j + 3 of a row of d; with kWide d is a multiple of four and the row aligned as a Group.
template <bool kWide, typename T>
__device__ __forceinline__ Group<T> LoadGroup(const T* row, int j, int d, T beyond) {
  if constexpr (kWide) {
    return *reinterpret_cast<const Group<T>*>(row + j);
  } else {
    Group<T> group;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) group.values[i] = j + i < d ? row[j + i] : beyond;
    return group;
  }
}

template <bool kWide, typename T>
__device__ __forceinline__ void StoreGroup(const Group<T>& group, int j, int d, T* row) {
  if constexpr (kWide) {
    *reinterpret_cast<Group<T>*>(row + j) = group;
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (j + i < d) row[j + i] = group.values[i];
    }
  }
}

// Every thread gets the largest; `shared` holds a number for each warp.
__device__ __forceinline__ unsigned BlockMax(unsigned x, unsigned* shared) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, offset));
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) x = max(x, shared[warp]);
  return x;
}

// One code type each: the largest code, and conversions for quotients and codes.
struct I8 {
  static constexpr float kLargest = 127.0f;
  static __device__ __forceinline__ std::uint8_t Encode(float quotient) {
    return static_cast<std::uint8_t>(__float2int_rn(fminf(fmaxf(quotient, -kLargest), kLargest)));
  }
  static __device__ __forceinline__ float Decode(std::uint8_t code) {
    return static_cast<float>(static_cast<std::int8_t>(code));
  }
};

// As F32ToF8E4M3 and F8E4M3ToF32 of dtype_convert.h, for quotients that are numbers.
struct F8E4M3 {
  static constexpr float kLargest = 448.0f;
  static __device__ __forceinline__ std::uint8_t Encode(float quotient) {
    const unsigned bits = __float_as_uint(quotient);
    const unsigned sign = (bits >> 24) & 0x80u;
    const unsigned magnitude = min(bits & 0x7fffffffu, 0x43e00000u);  // 448
    const unsigned normal = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
    const unsigned subnormal = static_cast<unsigned>(__float2int_rn(__uint_as_float(magnitude) * 512.0f));
    return static_cast<std::uint8_t>(sign | (magnitude < 0x3c800000u ? subnormal : normal));  // below 2^-6
  }
  static __device__ __forceinline__ float Decode(std::uint8_t code) {
    const unsigned sign = (code & 0x80u) << 24;
    const unsigned magnitude = code & 0x7fu;
    const unsigned subnormal = __float_as_uint(static_cast<float>(magnitude) * 0.001953125f);
    unsigned bits = magnitude < 8 ? subnormal : (magnitude << 20) + (120u << 23);
    if (magnitude == 0x7fu) bits = 0x7fc00000u;
    return __uint_as_float(sign | bits);
  }
};

// scale = absmax / largest code, code = round(x / scale).
template <typename X, typename Code, bool kWide>
__global__ void __launch_bounds__(kThreads)
    EncodeRowsKernel(const X* x, std::int64_t ldx, int d, float* scales, std::uint8_t* codes) {
  __shared__ unsigned shared[kThreads / kWarpSize];
  const X* const x_row = x + blockIdx.x * ldx;
  unsigned largest = 0;
  for (int j = threadIdx.x * kGroup; j < d; j += kThreads * kGroup) {
    const Group<X> group = LoadGroup<kWide>(x_row, j, d, FromFloat<X>(0.0f));
#pragma unroll
    // As bits, so that a NaN is the largest of all.
    for (const X value : group.values) largest = max(largest, __float_as_uint(ToFloat(value)) & 0x7fffffffu);
  }
  largest = BlockMax(largest, shared);
  const bool is_finite = largest < 0x7f800000u;
  const float scale = is_finite ? __uint_as_float(largest) / Code::kLargest : __uint_as_float(0x7fc00000u);
  std::uint8_t* const codes_row = codes + static_cast<std::int64_t>(blockIdx.x) * d;
  for (int j = threadIdx.x * kGroup; j < d; j += kThreads * kGroup) {
    const Group<X> group = LoadGroup<kWide>(x_row, j, d, FromFloat<X>(0.0f));
    Group<std::uint8_t> encoded;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      encoded.values[i] = scale > 0.0f ? Code::Encode(ToFloat(group.values[i]) / scale) : std::uint8_t{0};
    }
    StoreGroup<kWide>(encoded, j, d, codes_row);
  }
  if (threadIdx.x != 0) return;
  scales[blockIdx.x] = scale;
  // The last row fills up to where the codes begin.
  if (blockIdx.x + 1 == gridDim.x) {
    for (float* at = scales + gridDim.x; at < reinterpret_cast<float*>(codes); ++at) *at = 0.0f;
  }
}

// y = code * scale
template <typename Y, typename Code, bool kWide>
__global__ void __launch_bounds__(kThreads)
    DecodeRowsKernel(const float* scales, const std::uint8_t* codes, int d, Y* y, std::int64_t ldy) {
  const float scale = scales[blockIdx.x];
  const std::uint8_t* const codes_row = codes + static_cast<std::int64_t>(blockIdx.x) * d;
  Y* const y_row = y + blockIdx.x * ldy;
  for (int j = threadIdx.x * kGroup; j < d; j += kThreads * kGroup) {
    const Group<std::uint8_t> group = LoadGroup<kWide>(codes_row, j, d, std::uint8_t{0});
    Group<Y> decoded;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) decoded.values[i] = FromFloat<Y>(Code::Decode(group.values[i]) * scale);
    StoreGroup<kWide>(decoded, j, d, y_row);
  }
}

bool AllowsGroups(const ConstMatrixView& m) {
  const std::int64_t bytes = kGroup * DTypeBytes(m.dtype);
  return m.cols % kGroup == 0 && m.ld % kGroup == 0 && reinterpret_cast<std::uintptr_t>(m.data) % bytes == 0;
}

// Calls visit(code tag, std::true_type or std::false_type).
template <typename Visit>
absl::Status DispatchCode(DType wire, bool is_wide, const Visit& visit) {
  const auto with_width = [&](auto code) {
    return is_wide ? visit(code, std::true_type()) : visit(code, std::false_type());
  };
  return wire == DType::kI8 ? with_width(I8()) : with_width(F8E4M3());
}

LaunchShape BlockARow(std::int64_t rows) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(rows));
  shape.block = dim3(kThreads);
  return shape;
}

}  // namespace

absl::Status EncodeRows(Stream& stream, const ConstMatrixView& x, DType wire, void* out) {
  auto* const scales = static_cast<float*>(out);
  auto* const codes = static_cast<std::uint8_t*>(out) + WireCodesOffset(x.rows);
  return DispatchFloat(x.dtype, [&](auto* x_tag) {
    using X = std::remove_pointer_t<decltype(x_tag)>;
    return DispatchCode(wire, AllowsGroups(x), [&](auto code, auto wide) {
      return Launch(stream, BlockARow(x.rows), EncodeRowsKernel<X, decltype(code), decltype(wide)::value>, x.row<X>(0),
                    x.ld, static_cast<int>(x.cols), scales, codes);
    });
  });
}

absl::Status DecodeRows(Stream& stream, const void* in, DType wire, const MatrixView& y) {
  const auto* const scales = static_cast<const float*>(in);
  const auto* const codes = static_cast<const std::uint8_t*>(in) + WireCodesOffset(y.rows);
  return DispatchFloat(y.dtype, [&](auto* y_tag) {
    using Y = std::remove_pointer_t<decltype(y_tag)>;
    return DispatchCode(wire, AllowsGroups(y), [&](auto code, auto wide) {
      return Launch(stream, BlockARow(y.rows), DecodeRowsKernel<Y, decltype(code), decltype(wide)::value>, scales,
                    codes, static_cast<int>(y.cols), y.row<Y>(0), y.ld);
    });
  });
}

}  // namespace cuda
}  // namespace qst
