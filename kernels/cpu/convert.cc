#include "kernels/cpu/convert.h"

#include <cstring>

#include "kernels/cpu/convert_kernels.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace cpu {

void ToF32(const Exec& exec, DType dtype, const void* in, std::int64_t n, float* out) {
  if (n <= 0) return;
  switch (dtype) {
    case DType::kF32:
      std::memmove(out, in, n * sizeof(float));
      return;
    case DType::kBF16: {
      const auto* values = static_cast<const std::uint16_t*>(in);
      if (exec.use_avx2) return avx2::BF16ToF32Row(values, n, out);
      for (std::int64_t j = 0; j < n; ++j) out[j] = BF16ToF32(values[j]);
      return;
    }
    case DType::kF16: {
      const auto* values = static_cast<const std::uint16_t*>(in);
      if (exec.use_avx2) return avx2::F16ToF32Row(values, n, out);
      for (std::int64_t j = 0; j < n; ++j) out[j] = F16ToF32(values[j]);
      return;
    }
    default:
      QST_CHECK(false);  // The op checked the dtype.
  }
}

void FromF32(const Exec& exec, DType dtype, const float* in, std::int64_t n, void* out) {
  if (n <= 0) return;
  switch (dtype) {
    case DType::kF32:
      std::memmove(out, in, n * sizeof(float));
      return;
    case DType::kBF16: {
      auto* values = static_cast<std::uint16_t*>(out);
      if (exec.use_avx2) return avx2::F32ToBF16Row(in, n, values);
      for (std::int64_t j = 0; j < n; ++j) values[j] = F32ToBF16(in[j]);
      return;
    }
    case DType::kF16: {
      // Hardware conversion would be faster, but no hot path writes f16.
      auto* values = static_cast<std::uint16_t*>(out);
      for (std::int64_t j = 0; j < n; ++j) values[j] = F32ToF16(in[j]);
      return;
    }
    default:
      QST_CHECK(false);  // The op checked the dtype.
  }
}

const float* RowAsF32(const Exec& exec, const ConstMatrixView& m, std::int64_t i, float* scratch) {
  if (m.dtype == DType::kF32) return m.row<float>(i);
  ToF32(exec, m.dtype, m.row<std::uint16_t>(i), m.cols, scratch);
  return scratch;
}

}  // namespace cpu
}  // namespace qst
