#include "worker/checkpoint/model_source.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/gguf_file.h"
#include "worker/checkpoint/gguf_model.h"
#include "worker/checkpoint/huggingface_folder.h"

namespace qst {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMaxConfigBytes = 16 << 20;

absl::StatusOr<ModelSource> OpenFolder(const std::string& folder) {
  ModelSource source;
  source.path = folder;
  const std::string config_path = folder + "/config.json";
  absl::StatusOr<std::string> text = ReadSmallFile(config_path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(folder, ": no config.json: not a Hugging Face model folder"));
  }
  QST_RETURN_IF_ERROR(text.status());
  QST_ASSIGN_OR_RETURN(source.config, ParseModelConfig(*text, config_path));
  QST_ASSIGN_OR_RETURN(std::unique_ptr<HuggingFaceFolder> tensors, HuggingFaceFolder::Open(folder));
  source.format = tensors->format();
  source.weight_bytes = tensors->total_bytes();
  source.tensors = std::move(tensors);
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
  absl::StatusOr<ModelSource> source = absl::UnknownError("not set");
  if (fs::is_directory(status)) {
    source = OpenFolder(path);
  } else if (fs::path(path).extension() == ".safetensors" || fs::path(path).filename() == "pytorch_model.bin") {
    const fs::path folder = fs::path(path).parent_path();
    source = OpenFolder(folder.empty() ? "." : folder.string());
  } else {
    char magic[4] = {};
    std::ifstream(path, std::ios::binary).read(magic, sizeof(magic));
    if (fs::path(path).extension() != ".gguf" && std::memcmp(magic, "GGUF", 4) != 0) {
      return absl::UnimplementedError(
          absl::StrCat(path, ": neither a GGUF file nor a Hugging Face folder nor its weight file"));
    }
    source = OpenGguf(path);
  }
  QST_RETURN_IF_ERROR(source.status());
  QST_RETURN_IF_ERROR(CheckModelTensors(source->config, *source->tensors, path));
  return source;
}

}  // namespace qst
