// llama2.c checkpoints and tokenizer files: any bytes give an error or a model whose every element can be read.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/string_view.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/llama2c_file.h"
#include "worker/checkpoint/model_source.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  // Any number of tokens may be expected of a tokenizer; a file's own number is not in it.
  for (const std::int64_t vocab_size : {1, 3, 5, 512, 1 << 24}) {
    const auto tokenizer = qst::ParseLlama2cTokenizer(bytes, vocab_size, "fuzz");
    if (!tokenizer.ok()) {
      QST_CHECK(!tokenizer.status().message().empty());
      continue;
    }
    QST_CHECK(tokenizer->tokens.size() == static_cast<std::size_t>(vocab_size));
    QST_CHECK(tokenizer->scores.size() == tokenizer->tokens.size());
    QST_CHECK(tokenizer->token_types.size() == tokenizer->tokens.size());
  }
  const auto file = qst::Llama2cFile::FromMemory(data, size, "fuzz");
  if (!file.ok()) {
    QST_CHECK(!file.status().message().empty());
    return 0;
  }
  QST_CHECK(qst::IsLlama2c(bytes, size));
  QST_CHECK(qst::CheckModelTensors((*file)->config(), **file, "fuzz").ok());
  std::vector<float> values;
  for (const std::string& name : (*file)->names()) {
    const std::int64_t num_elems = (*file)->Find(name)->num_elems;
    QST_CHECK(num_elems * 4 <= static_cast<std::int64_t>(size));
    values.resize(static_cast<std::size_t>(num_elems));
    QST_CHECK((*file)->ReadFloat(name, 0, num_elems, values.data()).ok());
    QST_CHECK(!(*file)->ReadFloat(name, 1, num_elems, values.data()).ok());
    (*file)->Release(name);
  }
  return 0;
}
