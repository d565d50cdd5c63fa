#include "worker/checkpoint/huggingface_folder.h"

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "absl/strings/match.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/torch_file.h"

namespace qst {
namespace {

struct FileNames {
  const char* format;
  const char* single;
  const char* index;
};
// In the order of preference.
constexpr FileNames kFileNames[] = {
    {"safetensors", "model.safetensors", "model.safetensors.index.json"},
    {"pytorch", "pytorch_model.bin", "pytorch_model.bin.index.json"},
};
constexpr std::uint64_t kMaxIndexBytes = 64 << 20;

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HuggingFaceFolder>> HuggingFaceFolder::Open(const std::string& folder) {
  std::unique_ptr<HuggingFaceFolder> source(new HuggingFaceFolder(folder));
  for (const FileNames& names : kFileNames) {
    source->format_ = names.format;
    const std::string index_path = absl::StrCat(folder, "/", names.index);
    if (Exists(absl::StrCat(folder, "/", names.single))) {
      QST_RETURN_IF_ERROR(source->AddShard(names.single));
      return source;
    }
    if (Exists(index_path)) {
      QST_RETURN_IF_ERROR(source->OpenShards(index_path));
      return source;
    }
  }
  return absl::NotFoundError(absl::StrCat(folder, ": no weights are there: neither model.safetensors nor "
                                                  "pytorch_model.bin, nor an index of their shards"));
}

absl::Status HuggingFaceFolder::AddShard(const std::string& file_name) {
  const std::string path = absl::StrCat(folder_, "/", file_name);
  auto shard = std::make_unique<Shard>();
  shard->file_name = file_name;
  if (absl::EndsWith(file_name, ".safetensors")) {
    QST_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsReader> reader, SafetensorsReader::Open(path));
    total_bytes_ += reader->file_bytes();
    shard->tensors = std::move(reader);
  } else {
    QST_ASSIGN_OR_RETURN(std::unique_ptr<TorchFile> reader, TorchFile::Open(path));
    total_bytes_ += reader->file_bytes();
    shard->tensors = std::move(reader);
  }
  for (const std::string& name : shard->tensors->names()) {
    if (!shard_of_.emplace(name, shard.get()).second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor '", name, "' is in another shard too"));
    }
    names_.push_back(name);
  }
  shards_.push_back(std::move(shard));
  return absl::OkStatus();
}

absl::Status HuggingFaceFolder::OpenShards(const std::string& index_path) {
  using Json = nlohmann::json;
  QST_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(index_path, kMaxIndexBytes));
  const Json index = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
      index["weight_map"].empty()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": needs a 'weight_map' of tensor names to files"));
  }
  std::set<std::string> file_names;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map '", tensor, "' is not a file name"));
    }
    const std::string name = file.get<std::string>();
    // An index names its neighbours and nothing else on this machine.
    if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map '", tensor, "' names no file of this folder"));
    }
    file_names.insert(name);
  }
  for (const std::string& name : file_names) QST_RETURN_IF_ERROR(AddShard(name));
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    const auto it = shard_of_.find(tensor);
    if (it == shard_of_.end() || it->second->file_name != file.get<std::string>()) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": tensor '", tensor, "' is not in ", file.get<std::string>()));
    }
  }
  return absl::OkStatus();
}

const TensorInfo* HuggingFaceFolder::Find(absl::string_view name) const {
  const auto it = shard_of_.find(name);
  return it == shard_of_.end() ? nullptr : it->second->tensors->Find(name);
}

absl::Status HuggingFaceFolder::ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count,
                                          float* out) const {
  const auto it = shard_of_.find(name);
  if (it == shard_of_.end()) return CheckReadRange(nullptr, folder_, name, first, count);
  return it->second->tensors->ReadFloat(name, first, count, out);
}

absl::Status HuggingFaceFolder::ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count,
                                          void* out) const {
  const auto it = shard_of_.find(name);
  if (it == shard_of_.end()) return CheckReadRange(nullptr, folder_, name, 0, 0);
  return it->second->tensors->ReadBytes(name, first, count, out);
}

void HuggingFaceFolder::Release(absl::string_view name) const {
  const auto it = shard_of_.find(name);
  if (it != shard_of_.end()) it->second->tensors->Release(name);
}

}  // namespace qst
