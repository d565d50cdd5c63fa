// The safetensors reader: any bytes give an error or a file whose every element can be read.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "proto/support/status_macros.h"
#include "worker/checkpoint/safetensors_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto reader = qst::SafetensorsReader::FromMemory(data, size, "fuzz");
  if (!reader.ok()) {
    QST_CHECK(!reader.status().message().empty());
    return 0;
  }
  std::uint64_t covered = 0;
  unsigned sum = 0;
  std::vector<float> values;
  for (const std::string& name : (*reader)->names()) {
    const qst::TensorInfo* info = (*reader)->Find(name);
    QST_CHECK(info != nullptr);
    const qst::SafetensorsReader::RawTensor raw = (*reader)->Raw(name);
    for (std::uint64_t i = 0; i < raw.num_bytes; ++i) sum += raw.data[i];
    covered += raw.num_bytes;
    values.resize(static_cast<std::size_t>(info->num_elems));
    const absl::Status whole = (*reader)->ReadFloat(name, 0, info->num_elems, values.data());
    // Integers are not read as weights; a float64 may be too large.
    QST_CHECK(whole.ok() || absl::IsUnimplemented(whole) ||
              (info->encoding == "F64" && absl::IsInvalidArgument(whole)));
    QST_CHECK(!(*reader)->ReadFloat(name, 1, info->num_elems, values.data()).ok());
    (*reader)->Release(name);
  }
  QST_CHECK(covered <= size);
  volatile unsigned sink = sum;  // so that the reads above are not optimised away
  static_cast<void>(sink);
  return 0;
}
