#include "worker/checkpoint/import_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/import_errors.h"
#include "worker/checkpoint/import_plan.h"
#include "worker/checkpoint/model_source.h"
#include "worker/checkpoint/quantize_pipeline.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/staged_folder.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/checkpoint/stream_digest.h"
#include "worker/text/tokenizer_files.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using Part = ImportPiece::Part;

constexpr std::int64_t kChunkElems = 1 << 20;
// Room for the header, tokenizer files and what a nearly full file system keeps back.
constexpr std::uint64_t kDiskReserveBytes = 64 << 20;

absl::Status NotFinite(absl::string_view name, std::int64_t element, float value) {
  return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "': element ", element, " is ", value));
}

// Whether none of `count` floats is infinite or a NaN: those have all bits of the exponent set.
template <typename Bits>
bool NoExponentIsFull(const char* bytes, std::int64_t count, Bits exponent) {
  unsigned num_full = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * static_cast<std::int64_t>(sizeof(bits)), sizeof(bits));
    num_full += (bits & exponent) == exponent ? 1u : 0u;
  }
  return num_full == 0;
}

bool AllFinite(const char* bytes, DType dtype, std::int64_t count) {
  if (dtype == DType::kF32) return NoExponentIsFull<std::uint32_t>(bytes, count, 0x7f800000u);
  return NoExponentIsFull<std::uint16_t>(bytes, count, dtype == DType::kF16 ? 0x7c00 : 0x7f80);
}

// Writes the weight file of one import.
class WeightFileWriter {
 public:
  WeightFileWriter(const ModelSource& source, const ImportPlan& plan, const ImportOptions& options,
                   const ImportProgress& progress)
      : source_(source), plan_(plan), options_(options), progress_(progress) {}

  // Fills in the manifest's checksum and size, and what is known of layers; gives the digest of what was written.
  absl::StatusOr<FileDigest> Write(const std::string& path, StoreManifest* manifest) {
    QST_ASSIGN_OR_RETURN(writer_, SafetensorsStreamWriter::Create(path, plan_.entries, {{"format", "pt"}}, &digest_));
    header_bytes_ = writer_->file_bytes();
    QuantizePipeline pipeline(*source_.tensors, plan_, options_.num_threads);
    ErrorSummary errors(source_.config.num_layers);
    for (const ImportItem& item : plan_.items) errors.AddTensor(item.tensor);
    QuantizedWeight quantized;
    std::size_t quantized_item = plan_.items.size();  // the item that `quantized` holds
    for (std::size_t i = 0; i < plan_.pieces.size(); ++i) {
      const ImportPiece& piece = plan_.pieces[i];
      errors.AddEntry(plan_.items[piece.item].tensor, plan_.entries[i].NumBytes());
      if (piece.part == Part::kDense) {
        QST_RETURN_IF_ERROR(WriteDense(plan_.items[piece.item]));
        continue;
      }
      if (quantized_item != piece.item) {
        QST_ASSIGN_OR_RETURN(quantized, pipeline.Take(piece.item));
        quantized_item = piece.item;
        errors.AddWeight(plan_.items[piece.item].tensor, quantized);
      }
      QST_RETURN_IF_ERROR(WriteQuantizedPart(piece.part, plan_.items[piece.item], plan_.entries[i], quantized.tensor));
      QST_RETURN_IF_ERROR(Report(plan_.items[piece.item].tensor.name));
    }
    QST_RETURN_IF_ERROR(Report("syncing to disk"));
    QST_RETURN_IF_ERROR(writer_->Finish());
    FileDigest digest = digest_.Finish();
    manifest->weights_bytes = digest.num_bytes;
    manifest->weights_sha256 = digest.sha256;
    errors.Finish(manifest);
    return digest;
  }

 private:
  absl::Status Report(absl::string_view what) {
    const std::uint64_t done = writer_->file_bytes() - header_bytes_;
    if (progress_ && !progress_(static_cast<std::int64_t>(done), static_cast<std::int64_t>(plan_.data_bytes), what)) {
      return absl::CancelledError(absl::StrCat("import of ", options_.source, " cancelled"));
    }
    return absl::OkStatus();
  }

  // Copies a tensor that stays in the dtype that the source has it in. False if the source stores it in another way.
  absl::StatusOr<bool> WriteDenseAsIs(const ImportItem& item) {
    const std::string& name = item.tensor.name;
    if (source_.tensors->Find(name)->dtype != item.dtype) return false;
    const std::int64_t element_bytes = DTypeBytes(item.dtype);
    const std::int64_t num_elems = item.tensor.num_elems();
    std::vector<char> bytes(static_cast<std::size_t>(std::min(num_elems, kChunkElems) * element_bytes));
    for (std::int64_t first = 0; first < num_elems; first += kChunkElems) {
      const std::int64_t count = std::min(kChunkElems, num_elems - first);
      const absl::Status read =
          source_.tensors->ReadBytes(name, first * element_bytes, count * element_bytes, bytes.data());
      if (absl::IsUnimplemented(read) && first == 0) return false;
      QST_RETURN_IF_ERROR(read);
      if (!AllFinite(bytes.data(), item.dtype, count)) {
        // Once more, slowly, for the message.
        for (std::int64_t i = first; i < first + count; ++i) {
          float value = 0.0f;
          QST_RETURN_IF_ERROR(source_.tensors->ReadFloat(name, i, 1, &value));
          if (!std::isfinite(value)) return NotFinite(name, i, value);
        }
      }
      QST_RETURN_IF_ERROR(writer_->Append(bytes.data(), static_cast<std::uint64_t>(count * element_bytes)));
      QST_RETURN_IF_ERROR(Report(name));
    }
    source_.tensors->Release(name);
    return true;
  }

  absl::Status WriteDense(const ImportItem& item) {
    QST_ASSIGN_OR_RETURN(const bool is_written, WriteDenseAsIs(item));
    if (is_written) return absl::OkStatus();
    const std::string& name = item.tensor.name;
    const std::int64_t num_elems = item.tensor.num_elems();
    std::vector<float> values(static_cast<std::size_t>(std::min(num_elems, kChunkElems)));
    std::vector<std::uint16_t> narrow(item.dtype == DType::kF32 ? 0 : values.size());
    for (std::int64_t first = 0; first < num_elems; first += kChunkElems) {
      const std::int64_t count = std::min(kChunkElems, num_elems - first);
      QST_RETURN_IF_ERROR(source_.tensors->ReadFloat(name, first, count, values.data()));
      for (std::int64_t i = 0; i < count; ++i) {
        const float value = values[static_cast<std::size_t>(i)];
        if (!std::isfinite(value)) return NotFinite(name, first + i, value);
      }
      const std::uint64_t num_bytes =
          static_cast<std::uint64_t>(count) * static_cast<std::uint64_t>(DTypeBytes(item.dtype));
      if (item.dtype == DType::kF32) {
        QST_RETURN_IF_ERROR(writer_->Append(values.data(), num_bytes));
      } else {
        const bool is_half = item.dtype == DType::kF16;
        for (std::int64_t i = 0; i < count; ++i) {
          const std::size_t at = static_cast<std::size_t>(i);
          narrow[at] = is_half ? F32ToF16(values[at]) : F32ToBF16(values[at]);
        }
        QST_RETURN_IF_ERROR(writer_->Append(narrow.data(), num_bytes));
      }
      QST_RETURN_IF_ERROR(Report(name));
    }
    source_.tensors->Release(name);
    return absl::OkStatus();
  }

  absl::Status WriteQuantizedPart(Part part, const ImportItem& item, const SafetensorsEntry& entry,
                                  const Quant4Tensor& quantized) {
    const std::uint64_t num_bytes = static_cast<std::uint64_t>(entry.NumBytes());
    switch (part) {
      case Part::kPacked:
        QST_CHECK(quantized.packed.size() == num_bytes);
        return writer_->Append(quantized.packed.data(), num_bytes);
      case Part::kAbsmax:
        if (quantized.double_quant) {
          QST_CHECK(quantized.absmax_codes.size() == num_bytes);
          return writer_->Append(quantized.absmax_codes.data(), num_bytes);
        }
        QST_CHECK(quantized.absmax.size() * sizeof(float) == num_bytes);
        return writer_->Append(quantized.absmax.data(), num_bytes);
      case Part::kNestedAbsmax:
        QST_CHECK(quantized.nested_absmax.size() * sizeof(float) == num_bytes);
        return writer_->Append(quantized.nested_absmax.data(), num_bytes);
      case Part::kQuantMap:
        return writer_->Append(Quant4Table(quantized.type), num_bytes);
      case Part::kNestedQuantMap:
        return writer_->Append(quantized.view().nested_map, num_bytes);
      case Part::kQuantState: {
        QuantState state;
        state.type = quantized.type;
        state.block_size = quantized.block_size;
        state.dtype = item.prequantized != nullptr ? item.prequantized->dtype : source_.config.torch_dtype;
        state.shape = item.tensor.shape;
        state.double_quant = quantized.double_quant;
        state.nested_block_size = kNestedBlockSize;
        state.nested_offset = quantized.nested_offset;
        std::string text = QuantStateToJson(state);
        QST_CHECK(text.size() <= num_bytes);
        text.resize(num_bytes, ' ');
        return writer_->Append(text.data(), text.size());
      }
      case Part::kDense:
        break;
    }
    return absl::InternalError("a dense tensor among the parts of a quantized one");
  }

  const ModelSource& source_;
  const ImportPlan& plan_;
  const ImportOptions& options_;
  const ImportProgress& progress_;
  StreamDigest digest_;
  std::unique_ptr<SafetensorsStreamWriter> writer_;
  std::uint64_t header_bytes_ = 0;
};

absl::Status WriteTokenizer(const ModelSource& source, const std::string& folder) {
  TokenizerFiles files;
  if (source.tokenizer.has_value()) {
    absl::StatusOr<TokenizerFiles> made = ToTokenizerFiles(*source.tokenizer);
    if (!made.ok()) return Annotate(made.status(), source.path);
    files = *std::move(made);
  } else {
    QST_ASSIGN_OR_RETURN(files, ReadTokenizerFiles(source.path));
  }
  return WriteTokenizerFiles(files, folder);
}

}  // namespace

absl::Status ImportModel(const ImportOptions& given_options, const ImportProgress& progress) {
  ImportOptions options = given_options;
  options.destination = WithoutTrailingSlashes(options.destination);
  if (options.num_threads < 1) {
    return absl::InvalidArgumentError(absl::StrCat("num_threads is ", options.num_threads, ", must be at least 1"));
  }
  if (options.name.empty()) options.name = fs::path(options.destination).filename().string();
  QST_RETURN_IF_ERROR(CheckNewFolder(options.destination, "import"));
  QST_ASSIGN_OR_RETURN(ModelSource source, OpenModelSource(options.source));
  QST_ASSIGN_OR_RETURN(const ImportPlan plan,
                       PlanImport(source, options.quantization, options.required, options.num_threads));

  QST_ASSIGN_OR_RETURN(const std::unique_ptr<StagedFolder> folder,
                       StagedFolder::Create(options.destination, ".importing", "import"));
  QST_RETURN_IF_ERROR(CheckFreeDisk(folder->path(), plan.data_bytes + kDiskReserveBytes));
  QST_RETURN_IF_ERROR(WriteTokenizer(source, folder->path()));

  // What the stored weights are closest to, for programs that want one dtype.
  for (const ImportItem& item : plan.items) {
    if (item.tensor.kind != ModelTensor::Kind::kEmbedding) continue;
    source.config.torch_dtype = item.dtype == DType::kF32   ? "float32"
                                : item.dtype == DType::kF16 ? "float16"
                                                            : "bfloat16";
  }
  StoreManifest manifest;
  manifest.name = options.name;
  manifest.source_path = options.source;
  manifest.source_format = source.format;
  manifest.source_bytes = source.weight_bytes;
  manifest.quantization = plan.quantization;
  manifest.num_parameters = source.config.NumParameters();
  manifest.embedding_bytes = plan.embedding_bytes;
  manifest.layers_bytes = plan.layers_bytes;
  manifest.head_bytes = plan.head_bytes;
  WeightFileWriter writer(source, plan, options, progress);
  const absl::StatusOr<FileDigest> written = writer.Write(folder->Path(kStoreWeightsFile), &manifest);
  if (absl::IsCancelled(written.status())) return written.status();
  if (!written.ok()) return Annotate(written.status(), options.source);

  const std::string quantization_config =
      plan.quantization.has_value() ? QuantizationConfigJson(*plan.quantization, plan.UnquantizedModules()) : "";
  QST_RETURN_IF_ERROR(
      WriteFileAtomically(folder->Path(kStoreConfigFile), ModelConfigToJson(source.config, quantization_config)));
  QST_RETURN_IF_ERROR(WriteFileAtomically(folder->Path(kStoreManifestFile), StoreManifestToJson(manifest)));
  // Read back before anyone relies on it. The SHA-256 is of the bytes that were written, so it is the file's, too, if
  // the sums of its pieces are theirs; computing it once more would tell no more and take six times as long.
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> stored, StoredModel::Open(folder->path()));
  ThreadPool threads(options.num_threads);
  QST_RETURN_IF_ERROR(CheckPieces(*stored->weights().file(), *written, threads));
  return folder->Finish();
}

}  // namespace qst
