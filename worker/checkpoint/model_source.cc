#include "worker/checkpoint/model_source.h"

#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/bitsandbytes_weights.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/gguf_file.h"
#include "worker/checkpoint/gguf_model.h"
#include "worker/checkpoint/huggingface_folder.h"
#include "worker/checkpoint/llama2c_file.h"
#include "worker/checkpoint/prefixed_tensors.h"

namespace qst {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMaxConfigBytes = 16 << 20;
// Of all tensors but the LM head; files of a model without its head (the published ones of OPT) leave it out.
constexpr char kBaseModelPrefix[] = "model.";

// What a file is, from its first bytes.
enum class FileKind { kUnknown, kGguf, kLlama2c, kSafetensors, kTorch };

FileKind KindOf(const std::string& path) {
  char bytes[64] = {};
  std::ifstream file(path, std::ios::binary);
  file.read(bytes, sizeof(bytes));
  const absl::string_view start(bytes, static_cast<std::size_t>(file.gcount()));
  std::error_code error;
  const std::uint64_t file_bytes = fs::file_size(path, error);
  const std::string extension = fs::path(path).extension().string();
  if (error) return FileKind::kUnknown;
  if (absl::StartsWith(start, "GGUF")) return FileKind::kGguf;
  // torch.save: a zip archive, or pickles (protocol 2 at least).
  if (absl::StartsWith(start, "PK\3\4") || (start.size() > 2 && start[0] == '\x80' && start[1] <= 5)) {
    return FileKind::kTorch;
  }
  if (IsLlama2c(start, file_bytes)) return FileKind::kLlama2c;
  // The length of a header, then the header, a JSON object.
  if (start.size() > 8 && start[8] == '{' && absl::EndsWith(start.substr(4, 4), absl::string_view("\0\0\0\0", 4))) {
    return FileKind::kSafetensors;
  }
  // Damaged beyond recognition: the name says which reader's complaint is of use.
  if (extension == ".gguf") return FileKind::kGguf;
  if (extension == ".safetensors") return FileKind::kSafetensors;
  return fs::path(path).filename() == "pytorch_model.bin" ? FileKind::kTorch : FileKind::kUnknown;
}

absl::StatusOr<ModelSource> OpenLlama2c(const std::string& path) {
  ModelSource source;
  source.path = path;
  source.format = "llama2.c";
  QST_ASSIGN_OR_RETURN(std::unique_ptr<Llama2cFile> file, Llama2cFile::Open(path));
  source.weight_bytes = file->file_bytes();
  source.config = file->config();
  QST_ASSIGN_OR_RETURN(source.tokenizer, ReadLlama2cTokenizer(path, source.config.vocab_size));
  source.tensors = std::move(file);
  return source;
}

// The llama2.c checkpoint in a folder without config.json; empty unless there is exactly one.
std::string OnlyLlama2cIn(const std::string& folder) {
  std::string found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (!entry.is_regular_file(error) || KindOf(entry.path().string()) != FileKind::kLlama2c) continue;
    if (!found.empty()) return "";
    found = entry.path().string();
  }
  return found;
}

absl::StatusOr<ModelSource> OpenFolder(const std::string& folder) {
  ModelSource source;
  source.path = folder;
  const std::string config_path = folder + "/config.json";
  absl::StatusOr<std::string> text = ReadSmallFile(config_path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) {
    const std::string llama2c = OnlyLlama2cIn(folder);
    if (!llama2c.empty()) return OpenLlama2c(llama2c);
    return absl::NotFoundError(absl::StrCat(folder, ": no config.json: not a Hugging Face model folder"));
  }
  QST_RETURN_IF_ERROR(text.status());
  QST_ASSIGN_OR_RETURN(source.config, ParseModelConfig(*text, config_path));
  QST_ASSIGN_OR_RETURN(std::unique_ptr<HuggingFaceFolder> tensors, HuggingFaceFolder::Open(folder));
  source.format = tensors->format();
  source.weight_bytes = tensors->total_bytes();
  std::unique_ptr<TensorSource> all = std::move(tensors);
  if (BitsandbytesWeights::IsIn(*all)) {
    QST_ASSIGN_OR_RETURN(all, BitsandbytesWeights::Create(std::move(all), folder));
  }
  source.tensors = PrefixedTensors::Wrap(std::move(all), kBaseModelPrefix);
  return source;
}

absl::StatusOr<ModelSource> OpenGguf(const std::string& path) {
  ModelSource source;
  source.path = path;
  source.format = "gguf";
  QST_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  source.weight_bytes = file->size();
  QST_ASSIGN_OR_RETURN(std::unique_ptr<GgufModel> model, GgufModel::Create(std::move(file)));
  QST_ASSIGN_OR_RETURN(source.tokenizer, ReadGgufTokenizer(model->file()));
  source.config = model->config();
  source.tensors = std::move(model);
  return source;
}

}  // namespace

absl::Status CheckModelTensors(const ModelConfig& config, const TensorSource& tensors, const std::string& where) {
  for (const ModelTensor& wanted : ModelTensors(config)) {
    const TensorInfo* info = tensors.Find(wanted.name);
    if (info == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": tensor '", wanted.name, "' is missing"));
    }
    if (info->shape != wanted.shape) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": tensor '", wanted.name, "' is [",
                                                     absl::StrJoin(info->shape, ", "), "], the config asks for [",
                                                     absl::StrJoin(wanted.shape, ", "), "]"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelSource> OpenModelSource(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat("no model at ", path, ": no such file or folder"));
  }
  const auto open = [&]() -> absl::StatusOr<ModelSource> {
    if (fs::is_directory(status)) return OpenFolder(path);
    switch (KindOf(path)) {
      case FileKind::kGguf:
        return OpenGguf(path);
      case FileKind::kLlama2c:
        return OpenLlama2c(path);
      case FileKind::kSafetensors:
      case FileKind::kTorch: {
        const std::string folder = fs::path(path).parent_path().string();
        return OpenFolder(folder.empty() ? "." : folder);
      }
      case FileKind::kUnknown:
        break;
    }
    return absl::UnimplementedError(absl::StrCat(
        path, ": neither a GGUF file nor a llama2.c checkpoint nor a Hugging Face folder nor its weight file"));
  };
  absl::StatusOr<ModelSource> source = open();
  QST_RETURN_IF_ERROR(source.status());
  QST_RETURN_IF_ERROR(CheckModelTensors(source->config, *source->tensors, path));
  return source;
}

}  // namespace qst
