#include "client/upload.h"

#include <openssl/evp.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

absl::StatusOr<File> OpenRegular(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  // A pipe would block, and could not be read twice.
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  File file(std::fopen(path.c_str(), "rbe"), &std::fclose);
  if (file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  return file;
}

// The next piece; empty at the end.
absl::StatusOr<std::string> ReadPiece(std::FILE* file, const std::string& path) {
  std::string piece(kUploadPieceBytes, '\0');
  piece.resize(std::fread(piece.data(), 1, piece.size(), file));
  if (std::ferror(file)) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot read"));
  return piece;
}

}  // namespace

absl::StatusOr<FileDigest> DigestFile(const std::string& path) {
  QST_ASSIGN_OR_RETURN(const File file, OpenRegular(path));
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  QST_CHECK(context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  FileDigest digest;
  while (true) {
    QST_ASSIGN_OR_RETURN(const std::string piece, ReadPiece(file.get(), path));
    if (piece.empty()) break;
    QST_CHECK(EVP_DigestUpdate(context.get(), piece.data(), piece.size()) == 1);
    digest.size_bytes += piece.size();
  }
  if (digest.size_bytes == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": the file is empty"));
  unsigned char bytes[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  QST_CHECK(EVP_DigestFinal_ex(context.get(), bytes, &length) == 1);
  digest.sha256 = absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes), length));
  return digest;
}

absl::StatusOr<v1::UploadDatasetResponse> UploadFile(CoordinatorClient& client, const std::string& path,
                                                     const std::string& name, const FileDigest& digest,
                                                     absl::FunctionRef<void(uint64_t)> on_progress) {
  QST_ASSIGN_OR_RETURN(const File file, OpenRegular(path));
  v1::UploadDatasetHeader header;
  header.set_name(name);
  header.set_file_name(std::filesystem::path(path).filename().string());
  header.set_sha256(digest.sha256);
  uint64_t sent = 0;
  return client.UploadDataset(header, digest.size_bytes, [&]() -> absl::StatusOr<std::string> {
    on_progress(sent);
    QST_ASSIGN_OR_RETURN(std::string piece, ReadPiece(file.get(), path));
    sent += piece.size();
    return piece;
  });
}

}  // namespace qst
