#include "worker/checkpoint/safetensors_writer.h"

#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/safetensors_format.h"

namespace qst {

absl::StatusOr<std::string> SafetensorsHeader(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                                              const SafetensorsMetadata& metadata, std::uint64_t* data_bytes) {
  // Ordered: the header lists tensors in the order of their data.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kSafetensorsMetadataKey] = metadata;
  std::set<std::string> names;
  std::uint64_t offset = 0;
  for (const SafetensorsEntry& tensor : tensors) {
    if (tensor.name.empty() || tensor.name == kSafetensorsMetadataKey) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": a tensor may not be named '", tensor.name, "'"));
    }
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": two tensors are named '", tensor.name, "'"));
    }
    const std::int64_t num_bytes = tensor.NumBytes();
    if (num_bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor '", tensor.name, "' has a negative or overflowing shape"));
    }
    const std::uint64_t end = offset + static_cast<std::uint64_t>(num_bytes);
    // Not header[name] = {...}: an initializer list of pairs of strings would become an array.
    nlohmann::ordered_json& entry = header[tensor.name];
    entry["dtype"] = SafetensorsDTypeName(tensor.dtype);
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = std::vector<std::uint64_t>{offset, end};
    offset = end;
  }
  *data_bytes = offset;
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::ordered_json::exception&) {  // dump throws for one reason only
    return absl::InvalidArgumentError(absl::StrCat(path, ": a tensor name or metadata string is not UTF-8"));
  }
  text.append((kSafetensorsAlignment - (8 + text.size()) % kSafetensorsAlignment) % kSafetensorsAlignment, ' ');
  if (text.size() > kSafetensorsMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the header would take ", text.size(), " bytes"));
  }
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>((static_cast<std::uint64_t>(text.size()) >> (8 * i)) & 255);
  return bytes + text;
}

std::int64_t SafetensorsEntry::NumBytes() const {
  std::int64_t product = DTypeBytes(dtype);
  for (const std::int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(product, dim, &product)) return -1;
  }
  return product;
}

absl::Status WriteSafetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                              const SafetensorsMetadata& metadata) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsStreamWriter> writer,
                       SafetensorsStreamWriter::Create(path, tensors, metadata));
  for (const SafetensorsEntry& tensor : tensors) {
    QST_RETURN_IF_ERROR(writer->Append(tensor.data, static_cast<std::uint64_t>(tensor.NumBytes())));
  }
  return writer->Finish();
}

SafetensorsStreamWriter::SafetensorsStreamWriter(std::unique_ptr<AtomicFile> file, std::uint64_t expected_bytes,
                                                 StreamDigest* digest)
    : file_(std::move(file)), remaining_bytes_(expected_bytes), digest_(digest) {}

absl::StatusOr<std::unique_ptr<SafetensorsStreamWriter>> SafetensorsStreamWriter::Create(
    const std::string& path, const std::vector<SafetensorsEntry>& tensors, const SafetensorsMetadata& metadata,
    StreamDigest* digest) {
  std::uint64_t data_bytes = 0;
  QST_ASSIGN_OR_RETURN(const std::string header, SafetensorsHeader(path, tensors, metadata, &data_bytes));
  QST_ASSIGN_OR_RETURN(std::unique_ptr<AtomicFile> file, AtomicFile::Create(path));
  std::unique_ptr<SafetensorsStreamWriter> writer(
      new SafetensorsStreamWriter(std::move(file), header.size() + data_bytes, digest));
  QST_RETURN_IF_ERROR(writer->Append(header.data(), header.size()));
  return writer;
}

absl::Status SafetensorsStreamWriter::Append(const void* data, std::uint64_t num_bytes) {
  if (num_bytes > remaining_bytes_) {
    return absl::FailedPreconditionError(absl::StrCat(file_->path(), ": ", num_bytes, " bytes appended where only ",
                                                      remaining_bytes_, " are left to write"));
  }
  if (num_bytes == 0) return absl::OkStatus();
  remaining_bytes_ -= num_bytes;
  if (digest_ != nullptr) digest_->Update(data, num_bytes);
  return file_->Append(data, num_bytes);
}

absl::Status SafetensorsStreamWriter::Finish() {
  if (remaining_bytes_ != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(file_->path(), ": ", remaining_bytes_, " bytes of tensor data were never appended"));
  }
  return file_->Commit();
}

}  // namespace qst
