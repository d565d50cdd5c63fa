#include "worker/checkpoint/stored_model.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

std::int64_t CeilDivide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

absl::StatusOr<std::unique_ptr<StoredModel>> StoredModel::Open(const std::string& folder) {
  std::unique_ptr<StoredModel> model(new StoredModel);
  model->folder_ = folder;
  const std::string manifest_path = absl::StrCat(folder, "/", kStoreManifestFile);
  const absl::StatusOr<std::string> manifest_text = ReadSmallFile(manifest_path, kStoreMaxJsonBytes);
  if (absl::IsNotFound(manifest_text.status())) {
    return absl::NotFoundError(absl::StrCat("no stored model in ", folder, ": no ", kStoreManifestFile));
  }
  QST_RETURN_IF_ERROR(manifest_text.status());
  QST_ASSIGN_OR_RETURN(model->manifest_, ParseStoreManifest(*manifest_text, manifest_path));
  const std::string config_path = absl::StrCat(folder, "/", kStoreConfigFile);
  QST_ASSIGN_OR_RETURN(const std::string config_text, ReadSmallFile(config_path, kStoreMaxJsonBytes));
  QST_ASSIGN_OR_RETURN(model->config_, ParseStoredModelConfig(config_text, config_path));
  QST_ASSIGN_OR_RETURN(model->weights_, SafetensorsReader::Open(absl::StrCat(folder, "/", kStoreWeightsFile)));
  if (model->weights_->file_bytes() != model->manifest_.weights_bytes) {
    return absl::DataLossError(absl::StrCat(model->weights_->path(), ": ", model->weights_->file_bytes(), " bytes, ",
                                            kStoreManifestFile, " says ", model->manifest_.weights_bytes,
                                            ": import the model again"));
  }
  for (ModelTensor& tensor : ModelTensors(model->config_)) {
    std::string name = tensor.name;
    model->tensors_.emplace(std::move(name), std::move(tensor));
  }
  QST_RETURN_IF_ERROR(model->CheckTensors());
  model->CountBytes();
  return model;
}

std::string StoredModel::QuantStateName(absl::string_view name, Quant4Type* type) const {
  for (const Quant4Type candidate : {Quant4Type::kNF4, Quant4Type::kFP4}) {
    const std::string state_name = absl::StrCat(name, kQuantStateSuffix, Quant4TypeName(candidate));
    if (weights_->Find(state_name) != nullptr) {
      *type = candidate;
      return state_name;
    }
  }
  return "";
}

absl::Status StoredModel::CheckTensors() const {
  for (const auto& [name, wanted] : tensors_) {
    const TensorInfo* info = weights_->Find(name);
    if (info == nullptr) {
      return absl::DataLossError(absl::StrCat(weights_->path(), ": tensor '", wanted.name, "' is missing"));
    }
    Quant4Type type;
    std::vector<std::int64_t> expected = wanted.shape;
    if (wanted.kind == ModelTensor::Kind::kLinear && !QuantStateName(wanted.name, &type).empty()) {
      expected = {CeilDivide(wanted.num_elems(), 2), 1};
    }
    if (info->shape != expected) {
      return absl::DataLossError(absl::StrCat(weights_->path(), ": tensor '", wanted.name, "' is [",
                                              absl::StrJoin(info->shape, ", "), "], the config asks for [",
                                              absl::StrJoin(expected, ", "), "]"));
    }
  }
  return absl::OkStatus();
}

// Parts of a quantized weight are called like it, with a suffix.
const ModelTensor* StoredModel::TensorOf(absl::string_view name) const {
  auto it = tensors_.upper_bound(name);
  if (it == tensors_.begin()) return nullptr;
  --it;
  const absl::string_view found = it->first;
  const bool is_part = name.size() > found.size() && absl::StartsWith(name, found) && name[found.size()] == '.';
  return name == found || is_part ? &it->second : nullptr;
}

void StoredModel::CountBytes() {
  layer_bytes_.assign(static_cast<std::size_t>(config_.num_layers), 0);
  for (const std::string& name : weights_->names()) {
    const ModelTensor* const tensor = TensorOf(name);
    if (tensor == nullptr) continue;
    const std::int64_t bytes = static_cast<std::int64_t>(weights_->Raw(name).num_bytes);
    if (tensor->layer >= 0) {
      layer_bytes_[static_cast<std::size_t>(tensor->layer)] += bytes;
    } else if (tensor->is_output) {
      head_bytes_ += bytes;
    } else {
      embedding_bytes_ += bytes;
      if (config_.tie_word_embeddings && tensor->kind == ModelTensor::Kind::kEmbedding) head_bytes_ += bytes;
    }
  }
}

absl::StatusOr<const float*> StoredModel::FloatArray(const std::string& name, std::int64_t expected_elems) const {
  const TensorInfo* info = weights_->Find(name);
  if (info == nullptr) return absl::DataLossError(absl::StrCat(weights_->path(), ": tensor '", name, "' is missing"));
  if (info->dtype != DType::kF32 || info->num_elems != expected_elems) {
    return absl::DataLossError(absl::StrCat(weights_->path(), ": tensor '", name, "' has ", info->num_elems, " ",
                                            info->encoding, " elements, need ", expected_elems, " F32"));
  }
  const std::uint8_t* data = weights_->Raw(name).data;
  if (reinterpret_cast<std::uintptr_t>(data) % alignof(float) != 0) {
    return absl::DataLossError(
        absl::StrCat(weights_->path(), ": tensor '", name, "' does not start at a multiple of 4 bytes"));
  }
  return reinterpret_cast<const float*>(data);
}

absl::Status StoredModel::NotTheTable(absl::string_view name) const {
  return absl::DataLossError(
      absl::StrCat(weights_->path(), ": tensor '", name, "' is not the table of its quantization type"));
}

absl::StatusOr<WeightView> StoredModel::Quantized(absl::string_view name, const std::string& state_name,
                                                  Quant4Type type) const {
  const std::string where = absl::StrCat(weights_->path(), ": tensor '", name, "'");
  const SafetensorsReader::RawTensor packed = weights_->Raw(name);
  const SafetensorsReader::RawTensor state_bytes = weights_->Raw(state_name);
  QST_ASSIGN_OR_RETURN(
      const QuantState state,
      ParseQuantState(absl::string_view(reinterpret_cast<const char*>(state_bytes.data), state_bytes.num_bytes),
                      where));
  Quant4View view;
  view.type = type;
  view.rows = state.shape[0];
  view.cols = state.shape[1];
  view.block_size = static_cast<int>(state.block_size);
  view.packed = packed.data;
  if (state.type != type)
    return absl::DataLossError(absl::StrCat(where, ": quant_state is of another type than its name"));
  if (weights_->Find(name)->dtype != DType::kU8 ||
      static_cast<std::int64_t>(packed.num_bytes) != CeilDivide(view.num_elems(), 2)) {
    return absl::DataLossError(absl::StrCat(where, ": ", packed.num_bytes, " bytes of ", weights_->Find(name)->encoding,
                                            ", [", view.rows, ", ", view.cols, "] in 4 bit needs ",
                                            CeilDivide(view.num_elems(), 2), " of U8"));
  }
  const std::string absmax_name = absl::StrCat(name, kAbsmaxSuffix);
  const std::string table_name = absl::StrCat(name, kQuantMapSuffix);
  QST_ASSIGN_OR_RETURN(const float* table, FloatArray(table_name, 16));
  if (std::memcmp(table, Quant4Table(type), 16 * sizeof(float)) != 0) return NotTheTable(table_name);
  if (state.double_quant) {
    const TensorInfo* codes = weights_->Find(absmax_name);
    if (codes == nullptr || codes->dtype != DType::kU8 || codes->num_elems != view.num_blocks()) {
      return absl::DataLossError(absl::StrCat(where, ": absmax has ", codes == nullptr ? 0 : codes->num_elems,
                                              " entries, need ", view.num_blocks(), " of U8 (", view.num_elems(),
                                              " elements, block_size ", view.block_size, ")"));
    }
    view.absmax_codes = weights_->Raw(absmax_name).data;
    view.nested_block_size = static_cast<int>(state.nested_block_size);
    view.nested_offset = state.nested_offset;
    const std::string map_name = absl::StrCat(name, kNestedQuantMapSuffix);
    QST_ASSIGN_OR_RETURN(view.nested_map, FloatArray(map_name, 256));
    if (!IsDynamicMap8(view.nested_map)) return NotTheTable(map_name);
    QST_ASSIGN_OR_RETURN(view.nested_absmax, FloatArray(absl::StrCat(name, kNestedAbsmaxSuffix),
                                                        CeilDivide(view.num_blocks(), state.nested_block_size)));
  } else {
    QST_ASSIGN_OR_RETURN(view.absmax, FloatArray(absmax_name, view.num_blocks()));
  }
  return WeightView::Quantized(view);
}

absl::StatusOr<WeightView> StoredModel::Weight(absl::string_view name) const {
  Quant4Type type;
  const std::string state_name = QuantStateName(name, &type);
  if (!state_name.empty() && weights_->Find(name) != nullptr) return Quantized(name, state_name, type);
  const TensorInfo* info = weights_->Find(name);
  if (info == nullptr) return absl::NotFoundError(absl::StrCat(weights_->path(), ": no tensor '", name, "'"));
  const std::string where = absl::StrCat(weights_->path(), ": tensor '", name, "'");
  if (info->shape.size() != 2 ||
      (info->dtype != DType::kF32 && info->dtype != DType::kF16 && info->dtype != DType::kBF16)) {
    return absl::DataLossError(absl::StrCat(where, " is no matrix of floats but ", info->encoding, " [",
                                            absl::StrJoin(info->shape, ", "), "]"));
  }
  const std::uint8_t* data = weights_->Raw(name).data;
  if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(DTypeBytes(*info->dtype)) != 0) {
    return absl::DataLossError(absl::StrCat(where, " does not start at a multiple of its element size"));
  }
  return WeightView::Dense(ConstMatrixView(data, *info->dtype, info->shape[0], info->shape[1], info->shape[1]));
}

absl::StatusOr<ConstMatrixView> StoredModel::Dense(absl::string_view name) const {
  QST_ASSIGN_OR_RETURN(const WeightView weight, Weight(name));
  if (weight.is_quantized) {
    return absl::FailedPreconditionError(absl::StrCat(weights_->path(), ": tensor '", name, "' is stored in 4 bit"));
  }
  return weight.dense;
}

absl::StatusOr<std::vector<float>> StoredModel::Floats(absl::string_view name) const {
  const TensorInfo* info = weights_->Find(name);
  if (info == nullptr) return absl::NotFoundError(absl::StrCat(weights_->path(), ": no tensor '", name, "'"));
  std::vector<float> values(static_cast<std::size_t>(info->num_elems));
  QST_RETURN_IF_ERROR(weights_->ReadFloat(name, 0, info->num_elems, values.data()));
  return values;
}

void StoredModel::Prefetch(std::int64_t first, std::int64_t count) const {
  for (const std::string& name : weights_->names()) {
    const ModelTensor* const tensor = TensorOf(name);
    if (tensor == nullptr || tensor->layer < first || tensor->layer >= first + count) continue;
    const SafetensorsReader::RawTensor raw = weights_->Raw(name);
    weights_->file()->WillNeed(raw.file_offset, raw.num_bytes);
  }
}

void StoredModel::Forget(std::int64_t first, std::int64_t count) const {
  for (const std::string& name : weights_->names()) {
    const ModelTensor* const tensor = TensorOf(name);
    if (tensor == nullptr) continue;
    const bool is_layer = tensor->layer >= first && tensor->layer < first + count;
    const bool is_embedding = first == 0 && tensor->layer < 0 && !tensor->is_output;
    if (!is_layer && !is_embedding) continue;
    const SafetensorsReader::RawTensor raw = weights_->Raw(name);
    weights_->file()->DontNeed(raw.file_offset, raw.num_bytes);
  }
}

absl::Status StoredModel::Verify() const {
  constexpr std::uint64_t kChunkBytes = 8 << 20;
  const MappedFile& file = *weights_->file();
  Sha256 sha256;
  for (std::uint64_t offset = 0; offset < file.size(); offset += kChunkBytes) {
    const std::uint64_t length = std::min(kChunkBytes, file.size() - offset);
    sha256.Update(file.data() + offset, length);
    file.DontNeed(offset, length);  // so that verifying a large model does not take its size in memory
  }
  const std::string actual = sha256.HexDigest();
  if (actual != manifest_.weights_sha256) {
    return absl::DataLossError(absl::StrCat(weights_->path(), ": SHA-256 is ", actual, ", ", kStoreManifestFile,
                                            " says ", manifest_.weights_sha256, ": import the model again"));
  }
  return absl::OkStatus();
}

std::string StoredModel::Summary() const {
  const std::string quantization = manifest_.quantization.has_value()
                                       ? absl::StrCat(Quant4TypeName(manifest_.quantization->type),
                                                      manifest_.quantization->double_quant ? " (double)" : "")
                                       : "not quantized";
  return absl::StrFormat("%s: %s, %.1fM parameters, %d layers, %s, %.1f MiB", manifest_.name, config_.architecture,
                         static_cast<double>(manifest_.num_parameters) / 1e6, config_.num_layers, quantization,
                         static_cast<double>(manifest_.weights_bytes) / (1 << 20));
}

}  // namespace qst
