#include "worker/checkpoint/bitsandbytes_weights.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/quant/codes.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr std::int64_t kMaxQuantStateBytes = 1 << 16;
constexpr std::int64_t kChunkElems = 1 << 16;
constexpr char kScaleOf8BitSuffix[] = ".SCB";

std::int64_t CeilDivide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The weight that a quant_state tensor belongs to, and its type; nothing for other tensors.
std::optional<std::pair<std::string, Quant4Type>> WeightOf(absl::string_view name) {
  for (const Quant4Type type : {Quant4Type::kNF4, Quant4Type::kFP4}) {
    if (absl::ConsumeSuffix(&name, absl::StrCat(kQuantStateSuffix, Quant4TypeName(type)))) {
      return std::make_pair(std::string(name), type);
    }
  }
  return std::nullopt;
}

}  // namespace

bool BitsandbytesWeights::IsIn(const TensorSource& source) {
  return std::any_of(source.names().begin(), source.names().end(), [](const std::string& name) {
    return absl::StrContains(name, kQuantStateSuffix) || absl::EndsWith(name, kScaleOf8BitSuffix);
  });
}

absl::StatusOr<std::unique_ptr<BitsandbytesWeights>> BitsandbytesWeights::Create(std::unique_ptr<TensorSource> source,
                                                                                 const std::string& where) {
  std::unique_ptr<BitsandbytesWeights> weights(new BitsandbytesWeights(std::move(source), where));
  std::set<std::string> companions;
  for (const std::string& name : weights->source_->names()) {
    if (absl::EndsWith(name, kScaleOf8BitSuffix)) {
      return absl::UnimplementedError(absl::StrCat(where, ": tensor '", name,
                                                   "': weights that bitsandbytes quantized to "
                                                   "8 bit are not supported (4-bit ones are): import the original"));
    }
    const auto weight = WeightOf(name);
    if (!weight.has_value()) continue;
    QST_RETURN_IF_ERROR(weights->AddWeight(weight->first, name, weight->second));
    companions.insert(name);
    for (const char* suffix : {kAbsmaxSuffix, kQuantMapSuffix, kNestedAbsmaxSuffix, kNestedQuantMapSuffix}) {
      companions.insert(weight->first + suffix);
    }
  }
  for (const std::string& name : weights->source_->names()) {
    if (companions.count(name) == 0) weights->names_.push_back(name);
  }
  return weights;
}

absl::StatusOr<std::vector<float>> BitsandbytesWeights::ReadTable(const std::string& name,
                                                                  std::int64_t num_elems) const {
  const TensorInfo* info = source_->Find(name);
  if (info == nullptr) return absl::InvalidArgumentError(absl::StrCat(where_, ": tensor '", name, "' is missing"));
  if (info->dtype != DType::kF32 || info->num_elems != num_elems) {
    return absl::InvalidArgumentError(absl::StrCat(where_, ": tensor '", name, "' has ", info->num_elems, " ",
                                                   info->encoding, " elements, need ", num_elems, " F32"));
  }
  std::vector<float> table(static_cast<std::size_t>(num_elems));
  QST_RETURN_IF_ERROR(source_->ReadFloat(name, 0, num_elems, table.data()));
  return table;
}

absl::Status BitsandbytesWeights::CheckConstants(const std::string& name, std::int64_t num_elems) const {
  const TensorInfo* info = source_->Find(name);
  if (info == nullptr || info->dtype != DType::kF32 || info->num_elems != num_elems) {
    return absl::InvalidArgumentError(
        absl::StrCat(where_, ": tensor '", name, "' has ", info == nullptr ? 0 : info->num_elems, " ",
                     info == nullptr ? "" : info->encoding, " elements, need ", num_elems, " F32"));
  }
  std::vector<float> chunk(static_cast<std::size_t>(std::min(num_elems, kChunkElems)));
  for (std::int64_t first = 0; first < num_elems; first += kChunkElems) {
    const std::int64_t count = std::min(kChunkElems, num_elems - first);
    QST_RETURN_IF_ERROR(source_->ReadFloat(name, first, count, chunk.data()));
    for (std::int64_t i = 0; i < count; ++i) {
      const float value = chunk[static_cast<std::size_t>(i)];
      if (!std::isfinite(value)) {
        return absl::InvalidArgumentError(
            absl::StrCat(where_, ": tensor '", name, "': element ", first + i, " is ", value));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status BitsandbytesWeights::AddWeight(const std::string& name, const std::string& state_name, Quant4Type type) {
  const std::string where = absl::StrCat(where_, ": tensor '", name, "'");
  const std::int64_t state_bytes = source_->Find(state_name)->num_elems;
  if (source_->Find(state_name)->dtype != DType::kU8 || state_bytes > kMaxQuantStateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": quant_state is no text of U8, at most ", kMaxQuantStateBytes, " long"));
  }
  std::string text(static_cast<std::size_t>(state_bytes), '\0');
  QST_RETURN_IF_ERROR(source_->ReadBytes(state_name, 0, state_bytes, text.data()));
  QST_ASSIGN_OR_RETURN(const QuantState state, ParseQuantState(text, where));
  if (state.type != type) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": quant_state is of another type than its name"));
  }
  if (!CheckQuant4BlockSize(static_cast<int>(state.block_size)).ok() ||
      (state.double_quant && state.nested_block_size != kNestedBlockSize)) {
    return absl::UnimplementedError(
        absl::StrCat(where, ": blocks of ", state.block_size, " elements",
                     state.double_quant ? absl::StrCat(" and ", state.nested_block_size, " constants") : "",
                     " are not supported (64 to 4096 elements and ", kNestedBlockSize, " constants are)"));
  }
  Weight weight;
  weight.quantized.options = {type, static_cast<int>(state.block_size), state.double_quant};
  weight.quantized.dtype = state.dtype;
  weight.nested_offset = state.nested_offset;
  weight.info.encoding = absl::StrCat("bitsandbytes ", Quant4TypeName(type));
  weight.info.shape = state.shape;
  // No overflow: ParseQuantState bounds both.
  weight.info.num_elems = state.shape[0] * state.shape[1];

  // The codes may be stored as elements of any dtype (bnb_4bit_quant_storage).
  const TensorInfo* packed = source_->Find(name);
  const std::int64_t packed_bytes = CeilDivide(weight.info.num_elems, 2);
  char last = 0;
  if (packed == nullptr || packed_bytes == 0 || !packed->dtype.has_value() ||
      packed->num_elems * DTypeBytes(*packed->dtype) != packed_bytes ||
      !source_->ReadBytes(name, packed_bytes - 1, 1, &last).ok()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": has not the ", packed_bytes, " bytes of [", state.shape[0],
                                                   ", ", state.shape[1], "] in 4 bit that its quant_state speaks of"));
  }
  const std::int64_t num_blocks = CeilDivide(weight.info.num_elems, state.block_size);
  const auto other_table = [&](const char* suffix) {
    return absl::InvalidArgumentError(absl::StrCat(where_, ": tensor '", name, suffix,
                                                   "' is not the standard table of ", Quant4TypeName(type),
                                                   ": import the original model"));
  };
  QST_ASSIGN_OR_RETURN(const std::vector<float> table, ReadTable(name + kQuantMapSuffix, 16));
  // As numbers: files write FP4's second zero without its sign.
  if (!std::equal(table.begin(), table.end(), Quant4Table(type))) return other_table(kQuantMapSuffix);
  if (state.double_quant) {
    QST_ASSIGN_OR_RETURN(const std::vector<float> nested, ReadTable(name + kNestedQuantMapSuffix, 256));
    if (!IsDynamicMap8(nested.data())) return other_table(kNestedQuantMapSuffix);
    QST_RETURN_IF_ERROR(CheckConstants(name + kNestedAbsmaxSuffix, CeilDivide(num_blocks, kNestedBlockSize)));
    const TensorInfo* absmax = source_->Find(name + kAbsmaxSuffix);
    if (absmax == nullptr || absmax->dtype != DType::kU8 || absmax->num_elems != num_blocks) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": absmax has ", absmax == nullptr ? 0 : absmax->num_elems,
                                                     " entries, need ", num_blocks, " of U8 (", weight.info.num_elems,
                                                     " elements, block_size ", state.block_size, ")"));
    }
  } else {
    QST_RETURN_IF_ERROR(CheckConstants(name + kAbsmaxSuffix, num_blocks));
  }
  if (!weights_.emplace(name, std::move(weight)).second) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": has two quant_states"));
  }
  return absl::OkStatus();
}

const TensorInfo* BitsandbytesWeights::Find(absl::string_view name) const {
  const auto it = weights_.find(name);
  return it == weights_.end() ? source_->Find(name) : &it->second.info;
}

const PrequantizedInfo* BitsandbytesWeights::Prequantized(absl::string_view name) const {
  const auto it = weights_.find(name);
  return it == weights_.end() ? nullptr : &it->second.quantized;
}

absl::StatusOr<Quant4Tensor> BitsandbytesWeights::ReadQuant4(absl::string_view name) const {
  const auto it = weights_.find(name);
  if (it == weights_.end()) return TensorSource::ReadQuant4(name);
  const Weight& weight = it->second;
  Quant4Tensor tensor;
  tensor.type = weight.quantized.options.type;
  tensor.rows = weight.info.shape[0];
  tensor.cols = weight.info.shape[1];
  tensor.block_size = weight.quantized.options.block_size;
  tensor.double_quant = weight.quantized.options.double_quant;
  tensor.nested_offset = weight.nested_offset;
  tensor.packed.resize(static_cast<std::size_t>(CeilDivide(weight.info.num_elems, 2)));
  QST_RETURN_IF_ERROR(
      source_->ReadBytes(name, 0, static_cast<std::int64_t>(tensor.packed.size()), tensor.packed.data()));
  const std::int64_t num_blocks = CeilDivide(weight.info.num_elems, tensor.block_size);
  const std::string absmax_name = absl::StrCat(name, kAbsmaxSuffix);
  if (!tensor.double_quant) {
    tensor.absmax.resize(static_cast<std::size_t>(num_blocks));
    QST_RETURN_IF_ERROR(source_->ReadFloat(absmax_name, 0, num_blocks, tensor.absmax.data()));
    return tensor;
  }
  tensor.absmax_codes.resize(static_cast<std::size_t>(num_blocks));
  QST_RETURN_IF_ERROR(source_->ReadBytes(absmax_name, 0, num_blocks, tensor.absmax_codes.data()));
  const std::int64_t num_nested = CeilDivide(num_blocks, kNestedBlockSize);
  tensor.nested_absmax.resize(static_cast<std::size_t>(num_nested));
  QST_RETURN_IF_ERROR(
      source_->ReadFloat(absl::StrCat(name, kNestedAbsmaxSuffix), 0, num_nested, tensor.nested_absmax.data()));
  QST_ASSIGN_OR_RETURN(tensor.nested_map, ReadTable(absl::StrCat(name, kNestedQuantMapSuffix), 256));
  return tensor;
}

absl::Status BitsandbytesWeights::ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count,
                                            float* out) const {
  const auto it = weights_.find(name);
  if (it == weights_.end()) return source_->ReadFloat(name, first, count, out);
  QST_RETURN_IF_ERROR(CheckReadRange(&it->second.info, where_, name, first, count));
  QST_ASSIGN_OR_RETURN(const Quant4Tensor tensor, ReadQuant4(name));
  DequantizeRange(tensor.view(), first, count, out);
  return absl::OkStatus();
}

absl::Status BitsandbytesWeights::ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count,
                                            void* out) const {
  return source_->ReadBytes(name, first, count, out);
}

void BitsandbytesWeights::Release(absl::string_view name) const {
  source_->Release(name);
  if (weights_.find(name) == weights_.end()) return;
  for (const char* suffix : {kAbsmaxSuffix, kNestedAbsmaxSuffix}) source_->Release(absl::StrCat(name, suffix));
}

}  // namespace qst
