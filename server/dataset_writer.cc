#include "server/dataset_writer.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// The folder has this content already, if under another name: one more name for it, not another copy. False where that
// cannot be, such as on file systems without links.
bool LinkKnownContent(const std::string& folder, const std::string& path) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path() == path) return false;
    if (link(entry.path().c_str(), path.c_str()) == 0) return true;
  }
  return false;
}

}  // namespace

struct DatasetWriter::Hash {
  Hash() : context(EVP_MD_CTX_new()) {}
  ~Hash() { EVP_MD_CTX_free(context); }
  EVP_MD_CTX* context;
};

absl::StatusOr<std::unique_ptr<DatasetWriter>> DatasetWriter::Create(const StoreLayout& layout,
                                                                     absl::string_view file_name) {
  const std::string upload_path = layout.NewUploadPath();
  const int descriptor = open(upload_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot make ", upload_path));
  std::unique_ptr<DatasetWriter> writer(
      new DatasetWriter(layout, SanitizeFileName(file_name), upload_path, descriptor));
  if (writer->hash_->context == nullptr || EVP_DigestInit_ex(writer->hash_->context, EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("cannot set up sha256");
  }
  return writer;
}

DatasetWriter::DatasetWriter(const StoreLayout& layout, std::string file_name, std::string upload_path, int descriptor)
    : layout_(layout),
      file_name_(std::move(file_name)),
      upload_path_(std::move(upload_path)),
      descriptor_(descriptor),
      hash_(std::make_unique<Hash>()) {}

DatasetWriter::~DatasetWriter() {
  if (descriptor_ >= 0) close(descriptor_);
  // Gone already after Finish, unless it failed.
  unlink(upload_path_.c_str());
}

absl::Status DatasetWriter::Append(absl::string_view piece) {
  if (EVP_DigestUpdate(hash_->context, piece.data(), piece.size()) != 1) return absl::InternalError("sha256 failed");
  size_bytes_ += piece.size();
  while (!piece.empty()) {
    const ssize_t written = write(descriptor_, piece.data(), piece.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", upload_path_));
    }
    piece.remove_prefix(static_cast<std::size_t>(written));
  }
  return absl::OkStatus();
}

absl::StatusOr<ReceivedDataset> DatasetWriter::Finish(absl::string_view expected_sha256) {
  if (size_bytes_ == 0) return absl::InvalidArgumentError(absl::StrCat("the data set '", file_name_, "' is empty"));
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int digest_size = 0;
  if (EVP_DigestFinal_ex(hash_->context, digest, &digest_size) != 1) return absl::InternalError("sha256 failed");
  ReceivedDataset received;
  received.id = absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), digest_size));
  received.size_bytes = size_bytes_;
  received.file_name = file_name_;
  if (!expected_sha256.empty() && absl::AsciiStrToLower(expected_sha256) != received.id) {
    return absl::DataLossError(absl::StrCat("the data set '", file_name_, "' arrived with sha256 ", received.id,
                                            ", announced was ", expected_sha256, ": send it again"));
  }
  if (fsync(descriptor_) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync ", upload_path_));
  close(std::exchange(descriptor_, -1));

  const std::string folder = layout_.DatasetFolder(received.id);
  const std::string path = layout_.DatasetPath(received.id, file_name_);
  std::error_code error;
  received.was_there = !std::filesystem::create_directory(folder, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot make ", folder));
  if (received.was_there && LinkKnownContent(folder, path)) {
    unlink(upload_path_.c_str());
  } else if (rename(upload_path_.c_str(), path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot rename ", upload_path_, " to ", path));
  }
  QST_RETURN_IF_ERROR(SyncFolder(folder));
  QST_RETURN_IF_ERROR(SyncFolder(layout_.root() + "/datasets"));
  return received;
}

}  // namespace qst
