#include "worker/checkpoint/export_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/quant4.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/staged_folder.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::int64_t kChunkElems = 1 << 20;
constexpr std::uint64_t kCopyBytes = 8 << 20;
// Room for headers, tokenizer files and what a nearly full file system keeps back.
constexpr std::uint64_t kDiskReserveBytes = 64 << 20;
constexpr std::uint64_t kMaxSmallFileBytes = 256 << 20;  // tokenizer files and the like
constexpr char kIndexFile[] = "model.safetensors.index.json";

// What the config says of weights of this dtype.
const char* TorchDTypeName(DType dtype) {
  if (dtype == DType::kF16) return "float16";
  return dtype == DType::kBF16 ? "bfloat16" : "float32";
}

// One run of ExportModel.
class Exporter {
 public:
  Exporter(const ExportOptions& options, const ExportProgress& progress, const StoredModel& model,
           const StagedFolder& folder)
      : options_(options), progress_(progress), model_(model), folder_(folder) {}

  absl::Status WriteAsStored() {
    total_bytes_ = static_cast<std::int64_t>(model_.manifest().weights_bytes);
    QST_RETURN_IF_ERROR(CheckFreeDisk(folder_.path(), static_cast<std::uint64_t>(total_bytes_) + kDiskReserveBytes));
    QST_RETURN_IF_ERROR(CopySmallFiles());
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> source, MappedFile::Open(Stored(kStoreWeightsFile)));
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> copy, AtomicFile::Create(folder_.Path(kStoreWeightsFile)));
    Sha256 sha256;
    for (std::uint64_t at = 0; at < source->size(); at += kCopyBytes) {
      const std::uint64_t num_bytes = std::min(kCopyBytes, source->size() - at);
      QST_RETURN_IF_ERROR(copy->Append(source->data() + at, num_bytes));
      sha256.Update(source->data() + at, num_bytes);
      source->DontNeed(at, num_bytes);
      QST_RETURN_IF_ERROR(Report(static_cast<std::int64_t>(num_bytes), kStoreWeightsFile));
    }
    if (sha256.HexDigest() != model_.manifest().weights_sha256) {
      return absl::DataLossError(absl::StrCat(source->path(), ": its SHA-256 is not the one that ", kStoreManifestFile,
                                              " says: import the model again"));
    }
    return copy->Commit();
  }

  absl::Status WriteDequantized() {
    const std::vector<std::vector<SafetensorsEntry>> shards = CutIntoShards();
    QST_RETURN_IF_ERROR(CheckFreeDisk(folder_.path(), static_cast<std::uint64_t>(total_bytes_) + kDiskReserveBytes));
    QST_RETURN_IF_ERROR(CopySmallFiles());
    QST_RETURN_IF_ERROR(WritePlainConfig());
    Json weight_map = Json::object();
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string file_name = shards.size() == 1
                                        ? kStoreWeightsFile
                                        : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
      QST_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsStreamWriter> writer,
                           SafetensorsStreamWriter::Create(folder_.Path(file_name), shards[i], {{"format", "pt"}}));
      for (const SafetensorsEntry& entry : shards[i]) {
        QST_RETURN_IF_ERROR(WriteTensor(entry, *writer));
        weight_map[entry.name] = file_name;
      }
      QST_RETURN_IF_ERROR(writer->Finish());
    }
    if (shards.size() == 1) return absl::OkStatus();
    Json index;
    index["metadata"] = Json{{"total_size", total_bytes_}};
    index["weight_map"] = weight_map;
    return WriteFileAtomically(folder_.Path(kIndexFile), index.dump(2) + "\n");
  }

 private:
  std::string Stored(absl::string_view file_name) const { return absl::StrCat(model_.folder(), "/", file_name); }

  absl::Status Report(std::int64_t bytes_more, absl::string_view what) {
    done_bytes_ += bytes_more;
    if (progress_ && !progress_(done_bytes_, total_bytes_, what)) {
      return absl::CancelledError(absl::StrCat("export of ", model_.folder(), " cancelled"));
    }
    return absl::OkStatus();
  }

  // Config, tokenizer, generation settings: all files but the weights and the store's own.
  absl::Status CopySmallFiles() {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(model_.folder(), error)) {
      const std::string name = entry.path().filename().string();
      if (name == kStoreWeightsFile || name == kStoreManifestFile || !entry.is_regular_file()) continue;
      QST_ASSIGN_OR_RETURN(const std::string contents, ReadSmallFile(entry.path().string(), kMaxSmallFileBytes));
      QST_RETURN_IF_ERROR(WriteFileAtomically(folder_.Path(name), contents));
    }
    if (error) return absl::InternalError(absl::StrCat("cannot list ", model_.folder(), ": ", error.message()));
    return absl::OkStatus();
  }

  absl::Status WritePlainConfig() const {
    QST_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(Stored(kStoreConfigFile), kStoreMaxJsonBytes));
    nlohmann::ordered_json config = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!config.is_object())
      return absl::DataLossError(absl::StrCat(Stored(kStoreConfigFile), " is not a JSON object"));
    config.erase("quantization_config");
    config["torch_dtype"] = TorchDTypeName(options_.dtype);
    return WriteFileAtomically(folder_.Path(kStoreConfigFile),
                               config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }

  std::vector<std::vector<SafetensorsEntry>> CutIntoShards() {
    std::vector<std::vector<SafetensorsEntry>> shards(1);
    std::int64_t shard_bytes = 0;
    for (const ModelTensor& tensor : ModelTensors(model_.config())) {
      SafetensorsEntry entry;
      entry.name = tensor.name;
      entry.dtype = options_.dtype;
      entry.shape = tensor.shape;
      const std::int64_t num_bytes = entry.NumBytes();
      if (!shards.back().empty() && shard_bytes + num_bytes > options_.max_shard_bytes) {
        shards.emplace_back();
        shard_bytes = 0;
      }
      shard_bytes += num_bytes;
      total_bytes_ += num_bytes;
      shards.back().push_back(std::move(entry));
    }
    return shards;
  }

  absl::Status WriteTensor(const SafetensorsEntry& entry, SafetensorsStreamWriter& writer) {
    std::int64_t num_elems = 1;
    for (const std::int64_t dim : entry.shape) num_elems *= dim;
    // Vectors are never quantized.
    std::optional<WeightView> quantized;
    if (entry.shape.size() == 2) {
      QST_ASSIGN_OR_RETURN(const WeightView weight, model_.Weight(entry.name));
      if (weight.is_quantized) quantized = weight;
    }
    const SafetensorsReader& stored = model_.weights();
    std::vector<float> values(static_cast<std::size_t>(std::min(num_elems, kChunkElems)));
    std::vector<std::uint16_t> narrow(options_.dtype == DType::kF32 ? 0 : values.size());
    for (std::int64_t first = 0; first < num_elems; first += kChunkElems) {
      const std::int64_t count = std::min(kChunkElems, num_elems - first);
      if (quantized.has_value()) {
        DequantizeRange(quantized->quant4, first, count, values.data());
      } else {
        QST_RETURN_IF_ERROR(stored.ReadFloat(entry.name, first, count, values.data()));
      }
      const std::int64_t num_bytes = count * DTypeBytes(options_.dtype);
      const void* data = values.data();
      if (options_.dtype != DType::kF32) {
        QST_RETURN_IF_ERROR(Narrow(entry.name, first, count, values.data(), narrow.data()));
        data = narrow.data();
      }
      QST_RETURN_IF_ERROR(writer.Append(data, static_cast<std::uint64_t>(num_bytes)));
      QST_RETURN_IF_ERROR(Report(num_bytes, entry.name));
    }
    stored.Release(entry.name);
    stored.Release(absl::StrCat(entry.name, kAbsmaxSuffix));
    return absl::OkStatus();
  }

  absl::Status Narrow(const std::string& name, std::int64_t first, std::int64_t count, const float* values,
                      std::uint16_t* out) const {
    if (options_.dtype == DType::kBF16) {
      for (std::int64_t i = 0; i < count; ++i) out[i] = F32ToBF16(values[i]);
      return absl::OkStatus();
    }
    constexpr std::uint16_t kInfinity = 0x7c00;
    for (std::int64_t i = 0; i < count; ++i) {
      out[i] = F32ToF16(values[i]);
      if ((out[i] & kInfinity) == kInfinity && std::isfinite(values[i])) {
        return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "': element ", first + i, " is ", values[i],
                                                       ", too large for f16: export as bf16 or f32"));
      }
    }
    return absl::OkStatus();
  }

  const ExportOptions& options_;
  const ExportProgress& progress_;
  const StoredModel& model_;
  const StagedFolder& folder_;
  std::int64_t done_bytes_ = 0;
  std::int64_t total_bytes_ = 0;
};

}  // namespace

absl::Status ExportModel(const ExportOptions& options, const ExportProgress& progress) {
  if (options.dtype != DType::kF32 && options.dtype != DType::kF16 && options.dtype != DType::kBF16) {
    return absl::InvalidArgumentError("weights are exported as f32, bf16 or f16");
  }
  if (options.max_shard_bytes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_shard_bytes is ", options.max_shard_bytes, ", must be at least 1"));
  }
  QST_RETURN_IF_ERROR(CheckNewFolder(options.destination, "export"));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, StoredModel::Open(options.model));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<StagedFolder> folder,
                       StagedFolder::Create(options.destination, ".exporting", "export"));
  Exporter exporter(options, progress, *model, *folder);
  QST_RETURN_IF_ERROR(options.dequantize ? exporter.WriteDequantized() : exporter.WriteAsStored());
  return folder->Finish();
}

}  // namespace qst
