// Weights in 4 bit inside a safetensors file: any bytes give an error or weights that can be dequantized.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/quant/quant4.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/bitsandbytes_weights.h"
#include "worker/checkpoint/safetensors_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto reader = qst::SafetensorsReader::FromMemory(data, size, "fuzz");
  if (!reader.ok() || !qst::BitsandbytesWeights::IsIn(**reader)) return 0;
  const auto weights = qst::BitsandbytesWeights::Create(*std::move(reader), "fuzz");
  if (!weights.ok()) {
    QST_CHECK(!weights.status().message().empty());
    return 0;
  }
  for (const std::string& name : (*weights)->names()) {
    const qst::TensorInfo* info = (*weights)->Find(name);
    QST_CHECK(info != nullptr);
    if ((*weights)->Prequantized(name) == nullptr) continue;
    QST_CHECK(info->num_elems <= 2 * static_cast<std::int64_t>(size));
    const auto tensor = (*weights)->ReadQuant4(name);
    QST_CHECK(tensor.ok());
    QST_CHECK(qst::CheckQuant4View(tensor->view()).ok());
    QST_CHECK(tensor->rows == info->shape[0] && tensor->cols == info->shape[1]);
    std::vector<float> values(static_cast<std::size_t>(info->num_elems));
    QST_CHECK((*weights)->ReadFloat(name, 0, info->num_elems, values.data()).ok());
    // Constants are finite; their products may overflow, but no NaN comes of that.
    for (const float value : values) QST_CHECK(!std::isnan(value) || tensor->double_quant);
    (*weights)->Release(name);
  }
  return 0;
}
