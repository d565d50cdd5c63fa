#include "kernels/cpu/wire.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/wire_kernels.h"
#include "kernels/dtype_convert.h"
#include "kernels/wire_rows.h"

namespace qst {
namespace cpu {
namespace portable {

std::uint32_t AbsMaxBits(const float* x, std::int64_t n) {
  std::uint32_t largest = 0;
  for (std::int64_t j = 0; j < n; ++j) largest = std::max(largest, FloatBits(x[j]) & 0x7fffffffu);
  return largest;
}

void EncodeI8Row(const float* x, std::int64_t n, float scale, std::uint8_t* codes) {
  for (std::int64_t j = 0; j < n; ++j) {
    const float code = std::min(std::max(x[j] / scale, -127.0f), 127.0f);
    codes[j] = static_cast<std::uint8_t>(static_cast<std::int8_t>(RoundToInt(code)));
  }
}

void EncodeF8E4M3Row(const float* x, std::int64_t n, float scale, std::uint8_t* codes) {
  for (std::int64_t j = 0; j < n; ++j) codes[j] = F32ToF8E4M3(x[j] / scale);
}

void DecodeI8Row(const std::uint8_t* codes, std::int64_t n, float scale, float* y) {
  for (std::int64_t j = 0; j < n; ++j) y[j] = static_cast<float>(static_cast<std::int8_t>(codes[j])) * scale;
}

void DecodeF8E4M3Row(const std::uint8_t* codes, std::int64_t n, float scale, float* y) {
  for (std::int64_t j = 0; j < n; ++j) y[j] = F8E4M3ToF32(codes[j]) * scale;
}

}  // namespace portable

namespace {

// A step costs about that many simple operations.
constexpr std::int64_t kCostPerElem = 4;

float RowScale(std::uint32_t absmax_bits, DType wire) {
  if (absmax_bits >= 0x7f800000u) return BitsToFloat(0x7fc00000u);
  return BitsToFloat(absmax_bits) / (wire == DType::kI8 ? 127.0f : 448.0f);
}

}  // namespace

void EncodeRows(const Exec& exec, const ConstMatrixView& x, DType wire, void* out) {
  const auto abs_max_bits = exec.use_avx2 ? &avx2::AbsMaxBits : &portable::AbsMaxBits;
  const auto encode = wire == DType::kI8 ? (exec.use_avx2 ? &avx2::EncodeI8Row : &portable::EncodeI8Row)
                                         : (exec.use_avx2 ? &avx2::EncodeF8E4M3Row : &portable::EncodeF8E4M3Row);
  const std::int64_t n = x.cols;
  auto* const scales = static_cast<float*>(out);
  auto* const codes = static_cast<std::uint8_t*>(out) + WireCodesOffset(x.rows);
  std::fill(scales + x.rows, reinterpret_cast<float*>(codes), 0.0f);
  ParallelRows(exec, x.rows, kCostPerElem * n, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(x.dtype == DType::kF32 ? 0 : n);
    for (std::int64_t i = begin; i < end; ++i) {
      const float* const row = RowAsF32(exec, x, i, scratch.data());
      const float scale = RowScale(abs_max_bits(row, n), wire);
      scales[i] = scale;
      if (scale > 0.0f) {
        encode(row, n, scale, codes + i * n);
      } else {
        std::fill_n(codes + i * n, n, std::uint8_t{0});
      }
    }
  });
}

void DecodeRows(const Exec& exec, const void* in, DType wire, const MatrixView& y) {
  const auto decode = wire == DType::kI8 ? (exec.use_avx2 ? &avx2::DecodeI8Row : &portable::DecodeI8Row)
                                         : (exec.use_avx2 ? &avx2::DecodeF8E4M3Row : &portable::DecodeF8E4M3Row);
  const std::int64_t n = y.cols;
  const auto* const scales = static_cast<const float*>(in);
  const auto* const codes = static_cast<const std::uint8_t*>(in) + WireCodesOffset(y.rows);
  ParallelRows(exec, y.rows, kCostPerElem * n, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(y.dtype == DType::kF32 ? 0 : n);
    for (std::int64_t i = begin; i < end; ++i) {
      float* const row = y.dtype == DType::kF32 ? y.row<float>(i) : scratch.data();
      decode(codes + i * n, n, scales[i], row);
      if (y.dtype != DType::kF32) FromF32(exec, y.dtype, row, n, y.row<std::uint16_t>(i));
    }
  });
}

}  // namespace cpu
}  // namespace qst
