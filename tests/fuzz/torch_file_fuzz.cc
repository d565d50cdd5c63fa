// Any bytes as a PyTorch checkpoint: no crash, no access outside, memory in proportion; tensors that are found can be read.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/torch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::StatusOr<std::unique_ptr<qst::TorchFile>> file = qst::TorchFile::FromMemory(data, size, "fuzz");
  if (!file.ok()) {
    QST_CHECK(!file.status().message().empty());
    return 0;
  }
  for (const std::string& name : (*file)->names()) {
    const qst::TensorInfo* info = (*file)->Find(name);
    QST_CHECK(info != nullptr);
    std::vector<float> values(static_cast<std::size_t>(std::min<std::int64_t>(info->num_elems, 1000)));
    const std::int64_t count = static_cast<std::int64_t>(values.size());
    (*file)->ReadFloat(name, 0, count, values.data()).IgnoreError();
    (*file)->ReadFloat(name, info->num_elems - count, count, values.data()).IgnoreError();
  }
  return 0;
}
