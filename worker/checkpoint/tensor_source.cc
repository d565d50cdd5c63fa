#include "worker/checkpoint/tensor_source.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace qst {

absl::Status TensorSource::ReadBytes(absl::string_view name, std::int64_t, std::int64_t, void*) const {
  return absl::UnimplementedError(absl::StrCat("tensor '", name, "': its bytes cannot be read as they are"));
}

const PrequantizedInfo* TensorSource::Prequantized(absl::string_view) const { return nullptr; }

absl::StatusOr<Quant4Tensor> TensorSource::ReadQuant4(absl::string_view name) const {
  return absl::UnimplementedError(absl::StrCat("tensor '", name, "' is not stored in 4 bit"));
}

absl::Status NarrowFloat64(const std::uint8_t* data, std::int64_t first, std::int64_t count, absl::string_view where,
                           absl::string_view name, float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, data + i * static_cast<std::int64_t>(sizeof(value)), sizeof(value));
    out[i] = static_cast<float>(value);
    if (std::isinf(out[i]) && std::isfinite(value)) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": tensor '", name, "': element ", first + i, " is ", value,
                                                     ", too large for float32, in which weights are computed with"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckReadRange(const TensorInfo* info, absl::string_view where, absl::string_view name, std::int64_t first,
                            std::int64_t count) {
  if (info == nullptr) return absl::NotFoundError(absl::StrCat(where, ": no tensor '", name, "'"));
  if (first < 0 || count < 0 || first > info->num_elems || count > info->num_elems - first) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": tensor '", name, "': ", count, " elements from ", first,
                                                   " asked for, it has ", info->num_elems));
  }
  return absl::OkStatus();
}

absl::Status CheckByteRange(std::int64_t num_bytes, absl::string_view where, absl::string_view name, std::int64_t first,
                            std::int64_t count) {
  if (first >= 0 && count >= 0 && first <= num_bytes && count <= num_bytes - first) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": tensor '", name, "': ", count, " bytes from ", first, " asked for, it has ", num_bytes));
}

}  // namespace qst
