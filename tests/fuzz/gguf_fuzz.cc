// The GGUF reader and the LLaMA model in it: any bytes give an error or a file whose every element can be read.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "proto/support/status_macros.h"
#include "worker/checkpoint/gguf_file.h"
#include "worker/checkpoint/gguf_model.h"
#include "worker/checkpoint/model_source.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto file = qst::GgufFile::FromMemory(data, size, "fuzz");
  if (!file.ok()) {
    QST_CHECK(!file.status().message().empty());
    return 0;
  }
  const auto tokenizer = qst::ReadGgufTokenizer(**file);
  if (tokenizer.ok()) QST_CHECK(!tokenizer->tokens.empty());
  const auto model = qst::GgufModel::Create(*std::move(file));
  if (!model.ok()) return 0;
  QST_CHECK((*model)->config().head_dim % 2 == 0);
  std::vector<float> values;
  for (const std::string& name : (*model)->names()) {
    const qst::TensorInfo* info = (*model)->Find(name);
    QST_CHECK(info != nullptr);
    values.resize(static_cast<std::size_t>(info->num_elems));
    QST_CHECK((*model)->ReadFloat(name, 0, info->num_elems, values.data()).ok());
    // A range that starts and ends within blocks.
    const std::int64_t first = info->num_elems / 3;
    QST_CHECK((*model)->ReadFloat(name, first, info->num_elems / 2 - first / 2, values.data()).ok());
    QST_CHECK(!(*model)->ReadFloat(name, 1, info->num_elems, values.data()).ok());
  }
  if ((*model)->config().num_layers <= 16) {
    qst::CheckModelTensors((*model)->config(), **model, "fuzz").IgnoreError();
  }
  return 0;
}
