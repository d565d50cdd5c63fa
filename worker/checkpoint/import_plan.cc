#include "worker/checkpoint/import_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/device.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/safetensors_format.h"

namespace qst {
namespace {

using Part = ImportPiece::Part;

constexpr std::int64_t kScanElems = 1 << 20;  // per piece of work: 4 MiB of floats
constexpr float kLargestF16 = 65504.0f;
constexpr std::int64_t kNestedBlockElems = 256;

std::int64_t CeilDivide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The largest magnitude in a tensor. kInvalidArgument if an element is not finite.
absl::StatusOr<float> LargestMagnitude(const TensorSource& source, const std::string& name, ThreadPool& threads) {
  const std::int64_t num_elems = source.Find(name)->num_elems;
  const std::int64_t num_pieces = CeilDivide(num_elems, kScanElems);
  std::vector<float> largest(static_cast<std::size_t>(num_pieces), 0.0f);
  std::vector<absl::Status> statuses(static_cast<std::size_t>(num_pieces));
  threads.ParallelFor(num_pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> values(static_cast<std::size_t>(std::min(num_elems, kScanElems)));
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t first = piece * kScanElems;
      const std::int64_t count = std::min(kScanElems, num_elems - first);
      const std::size_t at = static_cast<std::size_t>(piece);
      statuses[at] = source.ReadFloat(name, first, count, values.data());
      if (!statuses[at].ok()) continue;
      for (std::int64_t i = 0; i < count; ++i) {
        const float magnitude = std::fabs(values[static_cast<std::size_t>(i)]);
        if (!std::isfinite(magnitude)) {
          statuses[at] = absl::InvalidArgumentError(
              absl::StrCat("tensor '", name, "': element ", first + i, " is ", values[static_cast<std::size_t>(i)]));
          break;
        }
        largest[at] = std::max(largest[at], magnitude);
      }
    }
  });
  for (const absl::Status& status : statuses) QST_RETURN_IF_ERROR(status);
  source.Release(name);
  return largest.empty() ? 0.0f : *std::max_element(largest.begin(), largest.end());
}

absl::StatusOr<DType> StoredDType(const TensorSource& source, const std::string& name, ThreadPool& threads) {
  const TensorInfo& info = *source.Find(name);
  if (info.dtype == DType::kF32 || info.dtype == DType::kF16 || info.dtype == DType::kBF16) return *info.dtype;
  if (info.encoding == "F64") return DType::kF32;
  if (info.dtype.has_value()) {
    return absl::UnimplementedError(absl::StrCat("tensor '", name, "' has dtype ", info.encoding,
                                                 "; weights are read from F32, F16, BF16 and F64"));
  }
  QST_ASSIGN_OR_RETURN(const float largest, LargestMagnitude(source, name, threads));
  return largest <= kLargestF16 ? DType::kF16 : DType::kBF16;
}

absl::Status CheckQuantization(const StoreQuantization& quantization) {
  const std::int64_t size = quantization.block_size;
  if (size < 64 || size > 4096 || (size & (size - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantization block_size is ", size, ", must be a power of two from 64 to 4096"));
  }
  return absl::OkStatus();
}

std::string ToText(const StoreQuantization& quantization) {
  return absl::StrCat(Quant4TypeName(quantization.type), ", blocks of ", quantization.block_size, ", ",
                      quantization.double_quant ? "double" : "single", " quantization");
}

// How the source's own 4-bit weights are quantized; nothing if it has none. All must be alike, and linear.
absl::StatusOr<std::optional<StoreQuantization>> SourceQuantization(const ModelSource& source) {
  std::optional<StoreQuantization> found;
  std::string first_name;
  for (const ModelTensor& tensor : ModelTensors(source.config)) {
    const PrequantizedInfo* info = source.tensors->Prequantized(tensor.name);
    if (info == nullptr) continue;
    if (tensor.kind != ModelTensor::Kind::kLinear) {
      return absl::UnimplementedError(absl::StrCat(source.path, ": tensor '", tensor.name,
                                                   "' is in 4 bit; only linear ",
                                                   "weights of layers may be: quantize the model without it "
                                                   "(llm_int8_skip_modules), or import the original"));
    }
    const StoreQuantization own = {info->options.type, info->options.block_size, info->options.double_quant};
    if (!found.has_value()) {
      found = own;
      first_name = tensor.name;
    } else if (own.type != found->type || own.block_size != found->block_size ||
               own.double_quant != found->double_quant) {
      return absl::InvalidArgumentError(absl::StrCat(source.path, ": 4-bit weights of two kinds: '", first_name,
                                                     "' is ", ToText(*found), ", '", tensor.name, "' is ", ToText(own),
                                                     ": one kind for all is supported; import the original model"));
    }
  }
  return found;
}

absl::Status CheckRequired(const ModelSource& source, const StoreQuantization& own,
                           const std::optional<StoreQuantization>& wanted, const RequiredQuantization& required) {
  if (wanted.has_value() && (!required.type || wanted->type == own.type) &&
      (!required.block_size || wanted->block_size == own.block_size) &&
      (!required.double_quant || wanted->double_quant == own.double_quant)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(source.path, ": the weights are quantized already (", ToText(own),
                                                 "), asked for is ", wanted.has_value() ? ToText(*wanted) : "none",
                                                 ": leave the quantization open, or import the original model"));
}

// Appends entries to the plan and keeps track of where the data are.
class PlanBuilder {
 public:
  explicit PlanBuilder(ImportPlan* plan) : plan_(plan) {}

  void AddItem(const ImportItem& item, const std::optional<StoreQuantization>& quantization) {
    plan_->items.push_back(item);
    const std::string& name = item.tensor.name;
    if (!item.is_quantized) {
      Add(name, Part::kDense, item.dtype, item.tensor.shape);
      return;
    }
    const std::int64_t num_blocks = CeilDivide(item.tensor.num_elems(), quantization->block_size);
    const std::int64_t packed_bytes = CeilDivide(item.tensor.num_elems(), 2);
    // Float parts must start at multiples of 4 bytes; the packed codes at one of 64 whenever all sizes are
    // even enough, which they are in any real model.
    const auto add_packed = [&] { Add(name, Part::kPacked, DType::kU8, {packed_bytes, 1}); };
    Add(name + kQuantMapSuffix, Part::kQuantMap, DType::kF32, {16});
    if (quantization->double_quant) Add(name + kNestedQuantMapSuffix, Part::kNestedQuantMap, DType::kF32, {256});
    if (packed_bytes % 4 == 0) add_packed();
    if (quantization->double_quant) {
      Add(name + kNestedAbsmaxSuffix, Part::kNestedAbsmax, DType::kF32, {CeilDivide(num_blocks, kNestedBlockElems)});
      Add(name + kAbsmaxSuffix, Part::kAbsmax, DType::kU8, {num_blocks});
    } else {
      Add(name + kAbsmaxSuffix, Part::kAbsmax, DType::kF32, {num_blocks});
    }
    if (packed_bytes % 4 != 0) add_packed();
    // The text is padded so that what follows starts aligned again.
    const std::int64_t alignment = static_cast<std::int64_t>(kSafetensorsAlignment);
    const std::int64_t end = static_cast<std::int64_t>(plan_->data_bytes) + kQuantStateBytes;
    Add(absl::StrCat(name, kQuantStateSuffix, Quant4TypeName(quantization->type)), Part::kQuantState, DType::kU8,
        {kQuantStateBytes + (alignment - end % alignment) % alignment});
  }

 private:
  void Add(std::string name, Part part, DType dtype, std::vector<std::int64_t> shape) {
    SafetensorsEntry entry;
    entry.name = std::move(name);
    entry.dtype = dtype;
    entry.shape = std::move(shape);
    const std::uint64_t num_bytes = static_cast<std::uint64_t>(entry.NumBytes());
    plan_->data_bytes += num_bytes;
    const ModelTensor& tensor = plan_->items.back().tensor;
    if (tensor.layer >= 0) {
      plan_->layers_bytes += num_bytes;
    } else if (tensor.is_output) {
      plan_->head_bytes += num_bytes;
    } else {
      plan_->embedding_bytes += num_bytes;
    }
    plan_->entries.push_back(std::move(entry));
    plan_->pieces.push_back({plan_->items.size() - 1, part});
  }

  ImportPlan* plan_;
};

}  // namespace

std::vector<std::string> ImportPlan::UnquantizedModules() const {
  std::vector<std::string> modules;
  for (const ImportItem& item : items) {
    if (item.tensor.kind != ModelTensor::Kind::kLinear || item.is_quantized) continue;
    modules.emplace_back(absl::StripSuffix(item.tensor.name, ".weight"));
  }
  return modules;
}

absl::StatusOr<ImportPlan> PlanImport(const ModelSource& source, const std::optional<StoreQuantization>& quantization,
                                      const RequiredQuantization& required, int num_threads) {
  if (quantization.has_value()) QST_RETURN_IF_ERROR(CheckQuantization(*quantization));
  QST_ASSIGN_OR_RETURN(const std::optional<StoreQuantization> own, SourceQuantization(source));
  if (own.has_value()) QST_RETURN_IF_ERROR(CheckRequired(source, *own, quantization, required));
  ImportPlan plan;
  plan.quantization = own.has_value() ? own : quantization;
  ThreadPool threads(num_threads);
  std::vector<ImportItem> items;
  std::vector<ImportItem> ragged;
  for (const ModelTensor& tensor : ModelTensors(source.config)) {
    ImportItem item;
    item.tensor = tensor;
    item.prequantized = source.tensors->Prequantized(tensor.name);
    item.is_quantized = own.has_value() ? item.prequantized != nullptr
                                        : quantization.has_value() && tensor.kind == ModelTensor::Kind::kLinear;
    if (!item.is_quantized) {
      absl::StatusOr<DType> dtype = StoredDType(*source.tensors, tensor.name, threads);
      if (!dtype.ok()) return Annotate(dtype.status(), source.path);
      item.dtype = *dtype;
    }
    // Tensors lie in the order of use, so that a stage reads one contiguous part of the file. The format has no
    // gaps; the few whose size would leave the next one unaligned go to the end, wider elements first.
    const std::uint64_t num_bytes = static_cast<std::uint64_t>(tensor.num_elems() * DTypeBytes(item.dtype));
    (item.is_quantized || num_bytes % kSafetensorsAlignment == 0 ? items : ragged).push_back(std::move(item));
  }
  std::stable_sort(ragged.begin(), ragged.end(),
                   [](const ImportItem& a, const ImportItem& b) { return DTypeBytes(a.dtype) > DTypeBytes(b.dtype); });
  PlanBuilder builder(&plan);
  for (const ImportItem& item : items) builder.AddItem(item, plan.quantization);
  for (const ImportItem& item : ragged) builder.AddItem(item, plan.quantization);
  return plan;
}

}  // namespace qst
