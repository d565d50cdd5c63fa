#include "worker/testing/synthetic_store.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/codes.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/import_plan.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qst {
namespace {

using Part = ImportPiece::Part;

constexpr std::uint64_t kPieceBytes = 8 << 20;
// Constants are nested_map[code] * kNestedAbsmax + kNestedOffset: from 0.02 to 0.06.
constexpr float kNestedAbsmax = 0.02f;
constexpr float kNestedOffset = 0.04f;
constexpr std::int64_t kNestedBlock = 256;

// Names and shapes without numbers: enough for a plan.
class ShapesOnly : public TensorSource {
 public:
  explicit ShapesOnly(const ModelConfig& config) {
    for (const ModelTensor& tensor : ModelTensors(config)) {
      names_.push_back(tensor.name);
      infos_[tensor.name] = TensorInfo{"BF16", DType::kBF16, tensor.shape, tensor.num_elems()};
    }
  }
  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override {
    const auto found = infos_.find(std::string(name));
    return found == infos_.end() ? nullptr : &found->second;
  }
  absl::Status ReadFloat(absl::string_view name, std::int64_t, std::int64_t, float*) const override {
    return absl::UnimplementedError(absl::StrCat("tensor '", name, "' has no numbers"));
  }
  void Release(absl::string_view) const override {}

 private:
  std::vector<std::string> names_;
  std::map<std::string, TensorInfo> infos_;
};

class Writer {
 public:
  explicit Writer(std::string path) : path_(std::move(path)) {}
  ~Writer() {
    if (fd_ >= 0) ::close(fd_);
  }

  absl::Status Open(std::uint64_t num_bytes) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) return ErrnoStatus("cannot create", path_, errno);
    if (::ftruncate(fd_, static_cast<off_t>(num_bytes)) != 0) return ErrnoStatus("cannot extend", path_, errno);
    return absl::OkStatus();
  }
  // Thread-safe.
  absl::Status WriteAt(std::uint64_t offset, const void* data, std::uint64_t num_bytes) {
    const char* bytes = static_cast<const char*>(data);
    while (num_bytes > 0) {
      const ssize_t written = ::pwrite(fd_, bytes, num_bytes, static_cast<off_t>(offset));
      if (written < 0) return ErrnoStatus("cannot write", path_, errno);
      bytes += written;
      offset += static_cast<std::uint64_t>(written);
      num_bytes -= static_cast<std::uint64_t>(written);
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  int fd_ = -1;
};

struct Piece {
  std::uint64_t offset = 0;
  std::uint64_t num_bytes = 0;
  bool is_bf16 = false;
};

std::uint64_t Next(std::uint64_t* state) {
  *state += 0x9e3779b97f4a7c15u;
  std::uint64_t z = *state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void FillRandom(const Piece& piece, std::vector<std::uint64_t>* words) {
  std::uint64_t state = piece.offset;
  words->resize((piece.num_bytes + 7) / 8);
  for (std::uint64_t& word : *words) word = Next(&state);
  if (!piece.is_bf16) return;
  std::uint16_t* const numbers = reinterpret_cast<std::uint16_t*>(words->data());
  // Uniform from -0.04 to 0.04.
  for (std::uint64_t i = 0; i < piece.num_bytes / 2; ++i) {
    numbers[i] = F32ToBF16((static_cast<float>(numbers[i]) / 32768.0f - 1.0f) * 0.04f);
  }
}

absl::Status FillAll(const std::vector<Piece>& pieces, Writer* writer) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  absl::Status status;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      std::vector<std::uint64_t> words;
      for (std::size_t at = next++; at < pieces.size(); at = next++) {
        FillRandom(pieces[at], &words);
        const absl::Status written = writer->WriteAt(pieces[at].offset, words.data(), pieces[at].num_bytes);
        std::lock_guard<std::mutex> lock(mutex);
        status.Update(written);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return status;
}

std::string QuantStateText(const ImportItem& item, const StoreQuantization& quantization, std::uint64_t num_bytes) {
  QuantState state;
  state.type = quantization.type;
  state.block_size = quantization.block_size;
  state.dtype = "bfloat16";
  state.shape = item.tensor.shape;
  state.double_quant = quantization.double_quant;
  state.nested_block_size = kNestedBlock;
  state.nested_offset = kNestedOffset;
  std::string text = QuantStateToJson(state);
  text.resize(num_bytes, ' ');
  return text;
}

}  // namespace

absl::Status WriteSyntheticStore(const ModelConfig& config, const StoreQuantization& quantization,
                                 SyntheticWeights weights, const std::string& folder) {
  ModelSource source;
  source.path = "synthetic";
  source.format = "safetensors";
  source.config = config;
  source.config.torch_dtype = "bfloat16";
  source.tensors = std::make_unique<ShapesOnly>(config);
  QST_ASSIGN_OR_RETURN(const ImportPlan plan, PlanImport(source, quantization, RequiredQuantization(), 1));
  const std::string path = absl::StrCat(folder, "/", kStoreWeightsFile);
  std::uint64_t data_bytes = 0;
  QST_ASSIGN_OR_RETURN(const std::string header,
                       SafetensorsHeader(path, plan.entries, {{"format", "pt"}}, &data_bytes));
  Writer writer(path);
  QST_RETURN_IF_ERROR(writer.Open(header.size() + data_bytes));
  QST_RETURN_IF_ERROR(writer.WriteAt(0, header.data(), header.size()));
  std::vector<Piece> pieces;
  std::uint64_t offset = header.size();
  for (std::size_t i = 0; i < plan.pieces.size(); ++i) {
    const ImportItem& item = plan.items[plan.pieces[i].item];
    const std::uint64_t num_bytes = static_cast<std::uint64_t>(plan.entries[i].NumBytes());
    switch (plan.pieces[i].part) {
      case Part::kQuantMap:
        QST_RETURN_IF_ERROR(writer.WriteAt(offset, Quant4Table(quantization.type), num_bytes));
        break;
      case Part::kNestedQuantMap:
        QST_RETURN_IF_ERROR(writer.WriteAt(offset, DynamicMap8(), num_bytes));
        break;
      case Part::kQuantState: {
        const std::string text = QuantStateText(item, quantization, num_bytes);
        QST_RETURN_IF_ERROR(writer.WriteAt(offset, text.data(), num_bytes));
        break;
      }
      case Part::kNestedAbsmax: {
        const std::vector<float> constants(num_bytes / sizeof(float), kNestedAbsmax);
        QST_RETURN_IF_ERROR(writer.WriteAt(offset, constants.data(), num_bytes));
        break;
      }
      default:
        if (item.tensor.kind == ModelTensor::Kind::kNorm) {
          const std::vector<std::uint16_t> ones(num_bytes / 2, F32ToBF16(1.0f));
          QST_RETURN_IF_ERROR(writer.WriteAt(offset, ones.data(), num_bytes));
          break;
        }
        for (std::uint64_t at = 0; at < num_bytes; at += kPieceBytes) {
          pieces.push_back({offset + at, std::min(kPieceBytes, num_bytes - at), plan.pieces[i].part == Part::kDense});
        }
    }
    offset += num_bytes;
  }
  if (weights == SyntheticWeights::kRandom) QST_RETURN_IF_ERROR(FillAll(pieces, &writer));

  StoreManifest manifest;
  manifest.name = "synthetic";
  manifest.source_path = source.path;
  manifest.source_format = source.format;
  manifest.quantization = plan.quantization;
  manifest.num_parameters = config.NumParameters();
  manifest.weights_sha256 = std::string(64, '0');
  manifest.weights_bytes = header.size() + data_bytes;
  manifest.embedding_bytes = plan.embedding_bytes;
  manifest.layers_bytes = plan.layers_bytes;
  manifest.head_bytes = plan.head_bytes;
  QST_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/", kStoreConfigFile),
                                          ModelConfigToJson(source.config, QuantizationConfigJson(quantization, {}))));
  return WriteFileAtomically(absl::StrCat(folder, "/", kStoreManifestFile), StoreManifestToJson(manifest));
}

absl::StatusOr<ModelConfig> PublishedShape(const std::string& name) {
  ModelConfig config;
  config.norm_eps = 1e-5;
  config.max_position_embeddings = 4096;
  config.vocab_size = 32000;
  if (name == "llama-2-7b") {
    config.hidden_size = 4096;
    config.intermediate_size = 11008;
    config.num_layers = 32;
    config.num_heads = config.num_kv_heads = 32;
  } else if (name == "llama-2-70b") {
    config.hidden_size = 8192;
    config.intermediate_size = 28672;
    config.num_layers = 80;
    config.num_heads = 64;
    config.num_kv_heads = 8;
  } else if (name == "tiny") {
    config.vocab_size = 512;
    config.hidden_size = 128;
    config.intermediate_size = 256;
    config.num_layers = 3;
    config.num_heads = 4;
    config.num_kv_heads = 2;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("no shape of a model '", name, "'; there are llama-2-7b, llama-2-70b and tiny"));
  }
  config.head_dim = config.hidden_size / config.num_heads;
  return config;
}

}  // namespace qst
