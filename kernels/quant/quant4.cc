#include "kernels/quant/quant4.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4_kernels.h"
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

// Of a block's `count` values, of which the first is element `begin` of the weight.
absl::Status NotFiniteError(const float* values, std::int64_t begin, std::int64_t count, std::int64_t cols) {
  std::int64_t i = 0;
  while (i + 1 < count && std::isfinite(values[i])) ++i;
  return absl::InvalidArgumentError(absl::StrCat("weight element ", begin + i, " (row ", (begin + i) / cols,
                                                 ", column ", (begin + i) % cols, ") is ", values[i],
                                                 ": only finite weights can be quantized"));
}

// What a block's elements are multiplied with. Never infinite, so that zeros among zeros (or among the tiniest
// numbers) get the code of zero, not that of a NaN.
float Inverse(float absmax) { return std::min(1.0f / absmax, std::numeric_limits<float>::max()); }

// n elements in blocks, the last of which may be shorter: absmax and packed. The first block that has an element that
// is not finite, or -1.
std::int64_t QuantizePortable(Quant4Type type, const float* x, std::int64_t n, int block_size, std::uint8_t* packed,
                              float* absmax) {
  std::vector<float> scaled(block_size);
  std::vector<std::uint8_t> codes(block_size + 1);
  for (std::int64_t begin = 0; begin < n; begin += block_size) {
    const std::int64_t count = std::min<std::int64_t>(block_size, n - begin);
    const float max = MaxMagnitude(x + begin, count);
    if (!std::isfinite(max)) return begin / block_size;
    absmax[begin / block_size] = max;
    const float inverse = Inverse(max);
    for (std::int64_t i = 0; i < count; ++i) scaled[i] = x[begin + i] * inverse;
    Quant4Codes(type, scaled.data(), count, codes.data());
    codes[count] = Quant4Code(type, 0.0f);  // the low nibble of the last byte if the number of elements is odd
    for (std::int64_t i = 0; i < count; i += 2) {
      packed[(begin + i) / 2] = static_cast<std::uint8_t>(codes[i] << 4 | codes[i + 1]);
    }
  }
  return -1;
}

std::int64_t QuantizeAvx2(Quant4Type type, const float* x, std::int64_t n, int block_size, std::uint8_t* packed,
                          float* absmax) {
  const Quant4Rule rule = Quant4RuleOf(type);
  std::array<std::uint8_t, 16> code_of_rank{};
  std::copy_n(rule.code_of_rank, rule.num_thresholds + 1, code_of_rank.begin());
  if (!rule.of_magnitude) {
    return quant::avx2::QuantizeNf4(x, n, block_size, rule.thresholds, code_of_rank.data(), packed, absmax);
  }
  for (int rank = 0; rank < 8; ++rank) code_of_rank[8 + rank] = rule.code_of_rank[rank] + rule.sign;
  return quant::avx2::QuantizeFp4(x, n, block_size, rule.thresholds, code_of_rank.data(), packed, absmax);
}

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

absl::StatusOr<Quant4Builder> Quant4Builder::Create(std::int64_t rows, std::int64_t cols, const Quant4Options& options,
                                                    CpuIsa isa) {
  QST_RETURN_IF_ERROR(CheckQuant4BlockSize(options.block_size));
  if (rows < 0 || cols < 0) {
    return absl::InvalidArgumentError(absl::StrCat("weight has shape [", rows, ", ", cols, "]"));
  }
  QST_ASSIGN_OR_RETURN(const CpuIsa resolved, ResolveIsa(isa));
  Quant4Builder builder;
  builder.wants_double_quant_ = options.double_quant;
  builder.use_avx2_ = resolved == CpuIsa::kAvx2;
  Quant4Tensor& tensor = builder.tensor_;
  tensor.type = options.type;
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.block_size = options.block_size;
  tensor.packed.resize((rows * cols + 1) / 2);
  tensor.absmax.resize((rows * cols + options.block_size - 1) / options.block_size);
  return builder;
}

absl::Status Quant4Builder::Append(const float* values, std::int64_t count) {
  const std::int64_t block_size = tensor_.block_size;
  const std::int64_t left = tensor_.rows * tensor_.cols - num_elems_;
  if (count < 0 || count > left || (count < left && count % block_size != 0)) {
    return absl::FailedPreconditionError(
        absl::StrCat(count, " elements given where ", left, " are left and blocks have ", block_size));
  }
  if (count == 0) return absl::OkStatus();
  std::uint8_t* const packed = tensor_.packed.data() + num_elems_ / 2;
  float* const absmax = tensor_.absmax.data() + num_elems_ / block_size;
  const auto quantize = use_avx2_ ? QuantizeAvx2 : QuantizePortable;
  const std::int64_t bad_block = quantize(tensor_.type, values, count, tensor_.block_size, packed, absmax);
  if (bad_block >= 0) {
    const std::int64_t first = bad_block * block_size;
    return NotFiniteError(values + first, num_elems_ + first, std::min(block_size, count - first), tensor_.cols);
  }
  num_elems_ += count;
  return absl::OkStatus();
}

absl::StatusOr<Quant4Tensor> Quant4Builder::Finish() {
  const std::int64_t left = tensor_.rows * tensor_.cols - num_elems_;
  if (left != 0) return absl::FailedPreconditionError(absl::StrCat(left, " elements of the weight are missing"));
  if (wants_double_quant_) QST_RETURN_IF_ERROR(DoubleQuantize(&tensor_));
  return std::move(tensor_);
}

absl::StatusOr<Quant4Tensor> Quantize4Bit(const float* weights, std::int64_t rows, std::int64_t cols,
                                          const Quant4Options& options, CpuIsa isa) {
  QST_ASSIGN_OR_RETURN(Quant4Builder builder, Quant4Builder::Create(rows, cols, options, isa));
  QST_RETURN_IF_ERROR(builder.Append(weights, rows * cols));
  return builder.Finish();
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
