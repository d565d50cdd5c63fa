// Constants of the safetensors container, shared by reader and writer.
//
//   8 bytes   length H of the header, little endian
//   H bytes   JSON: {"__metadata__": {string: string}, "<name>": {"dtype", "shape", "data_offsets": [begin, end]}, ...}
//             padded at its end with spaces
//   the rest  tensor data; data_offsets count from its start. Tensors cover it exactly: no hole, no overlap.
#ifndef QST_WORKER_CHECKPOINT_SAFETENSORS_FORMAT_H_
#define QST_WORKER_CHECKPOINT_SAFETENSORS_FORMAT_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "kernels/dtype.h"

namespace qst {

// Longest header that readers accept; the format's own limit.
inline constexpr std::uint64_t kSafetensorsMaxHeaderBytes = 100'000'000;
// Our files start their tensor data at a multiple of this many bytes.
inline constexpr std::uint64_t kSafetensorsAlignment = 64;
inline constexpr char kSafetensorsMetadataKey[] = "__metadata__";

// The name of a dtype in the header.
constexpr const char* SafetensorsDTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kI32:
      return "I32";
    case DType::kI8:
      return "I8";
    case DType::kU8:
      return "U8";
    case DType::kF8E4M3:
      return "F8_E4M3";
  }
  return "?";
}

// The inverse. Nothing for a dtype that this project has no use for (F64, I64, BOOL, ...).
inline std::optional<DType> SafetensorsDTypeFromName(absl::string_view name) {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kI32, DType::kI8, DType::kU8, DType::kF8E4M3}) {
    if (name == SafetensorsDTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_SAFETENSORS_FORMAT_H_
