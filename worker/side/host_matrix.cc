#include "worker/side/host_matrix.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/device_memory.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::StatusOr<std::vector<float>> DownloadMatrix(const OpContext& ctx, const ConstMatrixView& matrix) {
  const DType dtype = matrix.dtype;
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
    return absl::UnimplementedError(absl::StrCat("matrix of ", DTypeName(dtype), ", need f32, f16 or bf16"));
  }
  std::vector<float> out;
  if (matrix.empty()) return out;
  const std::int64_t element_bytes = DTypeBytes(dtype);
  std::vector<std::uint8_t> raw(
      static_cast<std::size_t>(((matrix.rows - 1) * matrix.ld + matrix.cols) * element_bytes));
  QST_RETURN_IF_ERROR(Download(ctx, matrix.data, static_cast<std::int64_t>(raw.size()), raw.data()));
  out.reserve(static_cast<std::size_t>(matrix.rows * matrix.cols));
  for (std::int64_t i = 0; i < matrix.rows; ++i) {
    for (std::int64_t j = 0; j < matrix.cols; ++j) {
      const std::uint8_t* const element = raw.data() + (i * matrix.ld + j) * element_bytes;
      float value = 0.0f;
      std::uint16_t half = 0;
      if (dtype == DType::kF32) {
        std::memcpy(&value, element, sizeof(value));
      } else {
        std::memcpy(&half, element, sizeof(half));
        value = dtype == DType::kBF16 ? BF16ToF32(half) : F16ToF32(half);
      }
      out.push_back(value);
    }
  }
  return out;
}

}  // namespace qst
