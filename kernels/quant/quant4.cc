#include "kernels/quant/quant4.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/quant/codes.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr int kMinBlockSize = 64;
constexpr int kMaxBlockSize = 4096;

// Largest magnitude of n elements; a NaN or an infinity among them makes the result not finite.
float MaxMagnitude(const float* x, std::int64_t n) {
  float max = 0.0f;
  float poison = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    max = std::max(max, std::fabs(x[i]));
    poison += x[i] * 0.0f;  // NaN if x[i] is not finite
  }
  return max + poison;
}

absl::Status NotFiniteError(const float* weights, std::int64_t begin, std::int64_t end, std::int64_t cols) {
  std::int64_t i = begin;
  while (i + 1 < end && std::isfinite(weights[i])) ++i;
  return absl::InvalidArgumentError(absl::StrCat("weight element ", i, " (row ", i / cols, ", column ", i % cols,
                                                 ") is ", weights[i], ": only finite weights can be quantized"));
}

// What a block's elements are multiplied with. Never infinite, so that zeros among zeros (or among the tiniest
// numbers) get the code of zero, not that of a NaN.
float Inverse(float absmax) { return std::min(1.0f / absmax, std::numeric_limits<float>::max()); }

}  // namespace

Quant4View Quant4Tensor::view() const {
  Quant4View view;
  view.type = type;
  view.rows = rows;
  view.cols = cols;
  view.block_size = block_size;
  view.packed = packed.data();
  if (double_quant) {
    view.absmax_codes = absmax_codes.data();
    view.nested_absmax = nested_absmax.data();
    view.nested_map = nested_map.empty() ? DynamicMap8() : nested_map.data();
    view.nested_offset = nested_offset;
    view.nested_block_size = kNestedBlockSize;
  } else {
    view.absmax = absmax.data();
  }
  return view;
}

std::int64_t Quant4Tensor::size_bytes() const {
  return static_cast<std::int64_t>(packed.size() + absmax_codes.size() +
                                   sizeof(float) * (absmax.size() + nested_absmax.size()));
}

absl::Status CheckQuant4BlockSize(int block_size) {
  if (block_size < kMinBlockSize || block_size > kMaxBlockSize || (block_size & (block_size - 1)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("block_size ", block_size, " is not a power of two in [",
                                                   kMinBlockSize, ", ", kMaxBlockSize, "]"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Quant4Tensor> Quantize4Bit(const float* weights, std::int64_t rows, std::int64_t cols,
                                          const Quant4Options& options) {
  const int block_size = options.block_size;
  QST_RETURN_IF_ERROR(CheckQuant4BlockSize(block_size));
  if (rows < 0 || cols < 0) {
    return absl::InvalidArgumentError(absl::StrCat("weight has shape [", rows, ", ", cols, "]"));
  }
  const std::int64_t num_elems = rows * cols;
  Quant4Tensor tensor;
  tensor.type = options.type;
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.block_size = block_size;
  tensor.packed.resize((num_elems + 1) / 2);
  tensor.absmax.reserve((num_elems + block_size - 1) / block_size);

  std::vector<float> scaled(block_size);
  std::vector<std::uint8_t> codes(block_size + 1);
  for (std::int64_t begin = 0; begin < num_elems; begin += block_size) {
    const std::int64_t count = std::min<std::int64_t>(block_size, num_elems - begin);
    const float* block = weights + begin;
    const float absmax = MaxMagnitude(block, count);
    if (!std::isfinite(absmax)) return NotFiniteError(weights, begin, begin + count, cols);
    const float inverse = Inverse(absmax);
    for (std::int64_t i = 0; i < count; ++i) scaled[i] = block[i] * inverse;
    Quant4Codes(options.type, scaled.data(), count, codes.data());
    codes[count] = Quant4Code(options.type, 0.0f);  // the low nibble of the last byte if the number of elements is odd
    std::uint8_t* packed = tensor.packed.data() + begin / 2;
    for (std::int64_t i = 0; i < count; i += 2) {
      packed[i / 2] = static_cast<std::uint8_t>(codes[i] << 4 | codes[i + 1]);
    }
    tensor.absmax.push_back(absmax);
  }
  if (options.double_quant) QST_RETURN_IF_ERROR(DoubleQuantize(&tensor));
  return tensor;
}

absl::Status DoubleQuantize(Quant4Tensor* tensor, std::optional<float> offset) {
  const auto num_blocks = static_cast<std::int64_t>(tensor->absmax.size());
  double sum = 0.0;
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    const float absmax = tensor->absmax[b];
    if (!std::isfinite(absmax)) {
      return absl::InvalidArgumentError(absl::StrCat("absmax of block ", b, " (elements from ", b * tensor->block_size,
                                                     ") is ", absmax, ": only finite weights can be quantized"));
    }
    sum += absmax;
  }
  const float mean = num_blocks == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(num_blocks));
  tensor->nested_offset = offset.value_or(mean);
  for (float& absmax : tensor->absmax) absmax -= tensor->nested_offset;
  tensor->absmax_codes.resize(num_blocks);
  for (std::int64_t begin = 0; begin < num_blocks; begin += kNestedBlockSize) {
    const std::int64_t end = std::min<std::int64_t>(num_blocks, begin + kNestedBlockSize);
    const float nested = MaxMagnitude(tensor->absmax.data() + begin, end - begin);
    // Infinite if all constants are about equal, which makes them NaNs or infinite: codes 0 and 255, as bitsandbytes
    // has it.
    const float inverse = 1.0f / nested;
    tensor->nested_absmax.push_back(nested);
    for (std::int64_t b = begin; b < end; ++b) tensor->absmax_codes[b] = DynamicMap8Code(tensor->absmax[b] * inverse);
  }
  tensor->absmax.clear();
  tensor->absmax.shrink_to_fit();
  tensor->double_quant = true;
  return absl::OkStatus();
}

absl::Status CheckQuant4View(const Quant4View& view) {
  if (view.rows < 0 || view.cols < 0) {
    return absl::InvalidArgumentError(absl::StrCat("4-bit weight has shape [", view.rows, ", ", view.cols, "]"));
  }
  if (view.block_size < 2 || view.block_size % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("4-bit weight: block_size ", view.block_size, " is not a positive even number"));
  }
  if (view.num_elems() == 0) return absl::OkStatus();
  if (view.packed == nullptr) return absl::InvalidArgumentError("4-bit weight: packed is null");
  if ((view.absmax == nullptr) == (view.absmax_codes == nullptr)) {
    return absl::InvalidArgumentError("4-bit weight: exactly one of absmax and absmax_codes must be set");
  }
  if (view.absmax_codes != nullptr) {
    if (view.nested_absmax == nullptr || view.nested_map == nullptr) {
      return absl::InvalidArgumentError("4-bit weight: absmax_codes without nested_absmax or nested_map");
    }
    if (view.nested_block_size < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("4-bit weight: nested_block_size ", view.nested_block_size, " is not positive"));
    }
  }
  return absl::OkStatus();
}

void DequantizeRange(const Quant4View& view, std::int64_t begin, std::int64_t count, float* out, std::int64_t stride) {
  const float* table = Quant4Table(view.type);
  const std::int64_t end = begin + count;
  std::int64_t e = begin;
  while (e < end) {
    const std::int64_t block = e / view.block_size;
    const std::int64_t block_end = std::min(end, (block + 1) * view.block_size);
    const float absmax = BlockAbsmax(view, block);
    for (; e < block_end; ++e) {
      const std::uint8_t byte = view.packed[e / 2];
      const int code = e % 2 == 0 ? byte >> 4 : byte & 15;
      *out = table[code] * absmax;
      out += stride;
    }
  }
}

}  // namespace qst
