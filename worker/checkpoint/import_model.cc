#include "worker/checkpoint/import_model.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/import_plan.h"
#include "worker/checkpoint/model_source.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/staged_folder.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/text/tokenizer_files.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using Part = ImportPiece::Part;

constexpr std::int64_t kChunkElems = 1 << 20;
// Room for the header, tokenizer files and what a nearly full file system keeps back.
constexpr std::uint64_t kDiskReserveBytes = 64 << 20;

// Quantizes the plan's linear weights on threads of its own, some way ahead of the writer, which takes the results
// in order. How far ahead is bounded by memory.
class QuantizePipeline {
 public:
  QuantizePipeline(const TensorSource& source, const ImportPlan& plan, const Quant4Options& options, int num_threads)
      : source_(source), plan_(plan), options_(options), results_(plan.items.size()) {
    std::int64_t largest = 0;
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
      if (!plan.items[i].is_quantized) continue;
      queue_.push_back(i);
      largest = std::max(largest, plan.items[i].tensor.num_elems());
    }
    // In elements being worked on or waiting as results. A result takes a sixth of its floats; twice the largest
    // weight as floats, with results, stays below three times.
    budget_elems_ = 2 * largest;
    const std::size_t num_useful = std::min<std::size_t>(static_cast<std::size_t>(num_threads), queue_.size());
    for (std::size_t i = 0; i < num_useful; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~QuantizePipeline() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  QuantizePipeline(const QuantizePipeline&) = delete;
  QuantizePipeline& operator=(const QuantizePipeline&) = delete;

  // Waits for an item's result and takes it. Items must be taken in the order of the plan.
  absl::StatusOr<Quant4Tensor> Take(std::size_t item) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return results_[item] != nullptr; });
    const std::unique_ptr<absl::StatusOr<Quant4Tensor>> result = std::move(results_[item]);
    pending_elems_ -= plan_.items[item].tensor.num_elems();
    lock.unlock();
    changed_.notify_all();
    return std::move(*result);
  }

 private:
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      // Claiming an item and its memory in one step, in order: else a later item could hold the memory that an
      // earlier one waits for, while the writer waits for the earlier one.
      changed_.wait(lock, [&] {
        return stopping_ || next_ == queue_.size() || pending_elems_ == 0 ||
               pending_elems_ + ElemsOf(next_) <= budget_elems_;
      });
      if (stopping_ || next_ == queue_.size()) return;
      const std::size_t item = queue_[next_];
      pending_elems_ += ElemsOf(next_);
      ++next_;
      lock.unlock();
      auto result = std::make_unique<absl::StatusOr<Quant4Tensor>>(Quantize(plan_.items[item].tensor));
      lock.lock();
      results_[item] = std::move(result);
      changed_.notify_all();
    }
  }

  std::int64_t ElemsOf(std::size_t position) const { return plan_.items[queue_[position]].tensor.num_elems(); }

  absl::StatusOr<Quant4Tensor> Quantize(const ModelTensor& tensor) const {
    std::vector<float> values(static_cast<std::size_t>(tensor.num_elems()));
    QST_RETURN_IF_ERROR(source_.ReadFloat(tensor.name, 0, tensor.num_elems(), values.data()));
    source_.Release(tensor.name);
    absl::StatusOr<Quant4Tensor> result = Quantize4Bit(values.data(), tensor.shape[0], tensor.shape[1], options_);
    if (!result.ok()) return Annotate(result.status(), absl::StrCat("tensor '", tensor.name, "'"));
    return result;
  }

  const TensorSource& source_;
  const ImportPlan& plan_;
  const Quant4Options options_;
  std::vector<std::size_t> queue_;  // items to quantize, in order
  std::int64_t budget_elems_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t next_ = 0;            // position in queue_ of the first item not claimed
  std::int64_t pending_elems_ = 0;  // claimed and not yet taken
  bool stopping_ = false;
  std::vector<std::unique_ptr<absl::StatusOr<Quant4Tensor>>> results_;
  std::vector<std::thread> threads_;
};

// Writes the weight file of one import.
class WeightFileWriter {
 public:
  WeightFileWriter(const ModelSource& source, const ImportPlan& plan, const ImportOptions& options,
                   const ImportProgress& progress)
      : source_(source), plan_(plan), options_(options), progress_(progress) {}

  // Fills in the manifest's checksum and size.
  absl::Status Write(const std::string& path, StoreManifest* manifest) {
    QST_ASSIGN_OR_RETURN(writer_, SafetensorsStreamWriter::Create(path, plan_.entries, {{"format", "pt"}}));
    header_bytes_ = writer_->file_bytes();
    Quant4Options quant4;
    if (options_.quantization.has_value()) {
      quant4.type = options_.quantization->type;
      quant4.block_size = static_cast<int>(options_.quantization->block_size);
      quant4.double_quant = options_.quantization->double_quant;
    }
    QuantizePipeline pipeline(*source_.tensors, plan_, quant4, options_.num_threads);
    Quant4Tensor quantized;
    std::size_t quantized_item = plan_.items.size();  // the item that `quantized` holds
    for (std::size_t i = 0; i < plan_.pieces.size(); ++i) {
      const ImportPiece& piece = plan_.pieces[i];
      if (piece.part == Part::kDense) {
        QST_RETURN_IF_ERROR(WriteDense(plan_.items[piece.item]));
        continue;
      }
      if (quantized_item != piece.item) {
        QST_ASSIGN_OR_RETURN(quantized, pipeline.Take(piece.item));
        quantized_item = piece.item;
      }
      QST_RETURN_IF_ERROR(WriteQuantizedPart(piece.part, plan_.items[piece.item], plan_.entries[i], quantized));
      QST_RETURN_IF_ERROR(Report(plan_.items[piece.item].tensor.name));
    }
    QST_RETURN_IF_ERROR(Report("syncing to disk"));
    QST_RETURN_IF_ERROR(writer_->Finish());
    manifest->weights_bytes = writer_->file_bytes();
    manifest->weights_sha256 = writer_->HexDigest();
    return absl::OkStatus();
  }

 private:
  absl::Status Report(absl::string_view what) {
    const std::uint64_t done = writer_->file_bytes() - header_bytes_;
    if (progress_ && !progress_(static_cast<std::int64_t>(done), static_cast<std::int64_t>(plan_.data_bytes), what)) {
      return absl::CancelledError(absl::StrCat("import of ", options_.source, " cancelled"));
    }
    return absl::OkStatus();
  }

  absl::Status WriteDense(const ImportItem& item) {
    const std::string& name = item.tensor.name;
    const std::int64_t num_elems = item.tensor.num_elems();
    std::vector<float> values(static_cast<std::size_t>(std::min(num_elems, kChunkElems)));
    std::vector<std::uint16_t> narrow(item.dtype == DType::kF32 ? 0 : values.size());
    for (std::int64_t first = 0; first < num_elems; first += kChunkElems) {
      const std::int64_t count = std::min(kChunkElems, num_elems - first);
      QST_RETURN_IF_ERROR(source_.tensors->ReadFloat(name, first, count, values.data()));
      for (std::int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(values[static_cast<std::size_t>(i)])) {
          return absl::InvalidArgumentError(
              absl::StrCat("tensor '", name, "': element ", first + i, " is ", values[static_cast<std::size_t>(i)]));
        }
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
        return writer_->Append(DynamicMap8(), num_bytes);
      case Part::kQuantState: {
        QuantState state;
        state.type = quantized.type;
        state.block_size = quantized.block_size;
        state.dtype = source_.config.torch_dtype;
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
  QST_ASSIGN_OR_RETURN(const ImportPlan plan, PlanImport(source, options.quantization, options.num_threads));

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
  manifest.quantization = options.quantization;
  manifest.num_parameters = source.config.NumParameters();
  manifest.embedding_bytes = plan.embedding_bytes;
  manifest.layers_bytes = plan.layers_bytes;
  manifest.head_bytes = plan.head_bytes;
  WeightFileWriter writer(source, plan, options, progress);
  const absl::Status written = writer.Write(folder->Path(kStoreWeightsFile), &manifest);
  if (!written.ok()) return absl::IsCancelled(written) ? written : Annotate(written, options.source);

  const std::string quantization_config =
      options.quantization.has_value() ? QuantizationConfigJson(*options.quantization) : "";
  QST_RETURN_IF_ERROR(
      WriteFileAtomically(folder->Path(kStoreConfigFile), ModelConfigToJson(source.config, quantization_config)));
  QST_RETURN_IF_ERROR(WriteFileAtomically(folder->Path(kStoreManifestFile), StoreManifestToJson(manifest)));
  // Read back before anyone relies on it.
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> stored, StoredModel::Open(folder->path()));
  QST_RETURN_IF_ERROR(stored->Verify());
  return folder->Finish();
}

}  // namespace qst
