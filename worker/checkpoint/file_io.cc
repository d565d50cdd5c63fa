#include "worker/checkpoint/file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Appends are gathered up to this many bytes, so that many small tensors do not become many writes.
constexpr std::size_t kBufferBytes = 1 << 20;

// After so many bytes the system starts to bring them to the disk, so that Commit does not wait for all of them.
constexpr std::uint64_t kWriteBehindBytes = 32 << 20;

std::string ParentFolder(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status WriteAll(int fd, const std::string& path, const char* data, std::uint64_t num_bytes) {
  while (num_bytes > 0) {
    // Linux moves at most 2 GiB a call; smaller pieces cost nothing.
    const ssize_t written = ::write(fd, data, std::min<std::uint64_t>(num_bytes, 1u << 30));
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus("cannot write", path, errno);
    }
    data += written;
    num_bytes -= static_cast<std::uint64_t>(written);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ErrnoStatus(absl::string_view what, absl::string_view path, int error_number) {
  char text[256];
  const std::string message = absl::StrCat(what, " ", path, ": ", ::strerror_r(error_number, text, sizeof(text)));
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("cannot open", path, errno);
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    const absl::Status status = ErrnoStatus("cannot read", path, errno);
    ::close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  const std::uint64_t size = static_cast<std::uint64_t>(info.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
      const absl::Status status = ErrnoStatus("cannot map", path, errno);
      ::close(fd);
      return status;
    }
  }
  ::close(fd);  // The mapping keeps the file.
  return std::unique_ptr<MappedFile>(new MappedFile(path, static_cast<const std::uint8_t*>(data), size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::uint8_t*>(data_), size_);
}

void MappedFile::WillNeed(std::uint64_t offset, std::uint64_t length) const {
  if (offset >= size_ || length == 0) return;
  const std::uint64_t page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t end = offset + std::min(length, size_ - offset);
  const std::uint64_t begin = offset / page * page;
  ::madvise(const_cast<std::uint8_t*>(data_) + begin, end - begin, MADV_WILLNEED);
}

void MappedFile::DontNeed(std::uint64_t offset, std::uint64_t length) const {
  if (offset >= size_ || length == 0) return;
  const std::uint64_t page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t end = (offset + std::min(length, size_ - offset)) / page * page;
  const std::uint64_t begin = (offset + page - 1) / page * page;
  if (begin >= end) return;
  ::madvise(const_cast<std::uint8_t*>(data_) + begin, end - begin, MADV_DONTNEED);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(const std::string& path) {
  const std::string temp_path = path + ".tmp";
  const int fd = ::open(temp_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus("cannot create", temp_path, errno);
  return std::unique_ptr<AtomicFile>(new AtomicFile(path, fd));
}

AtomicFile::AtomicFile(std::string path, int fd) : path_(std::move(path)), temp_path_(path_ + ".tmp"), fd_(fd) {}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_) ::unlink(temp_path_.c_str());
}

absl::Status AtomicFile::Append(const void* data, std::uint64_t num_bytes) {
  const char* bytes = static_cast<const char*>(data);
  size_ += num_bytes;
  if (buffer_.size() + num_bytes <= kBufferBytes) {
    buffer_.append(bytes, num_bytes);
    return absl::OkStatus();
  }
  QST_RETURN_IF_ERROR(Flush());
  QST_RETURN_IF_ERROR(WriteAll(fd_, temp_path_, bytes, num_bytes));
  if (size_ - started_bytes_ >= kWriteBehindBytes) {
    // A hint: what fails here fails in Commit, too.
    ::sync_file_range(fd_, static_cast<off64_t>(started_bytes_), static_cast<off64_t>(size_ - started_bytes_),
                      SYNC_FILE_RANGE_WRITE);
    started_bytes_ = size_;
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Flush() {
  QST_RETURN_IF_ERROR(WriteAll(fd_, temp_path_, buffer_.data(), buffer_.size()));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  QST_RETURN_IF_ERROR(Flush());
  if (::fsync(fd_) != 0) return ErrnoStatus("cannot sync", temp_path_, errno);
  const int close_result = ::close(fd_);
  fd_ = -1;
  if (close_result != 0) return ErrnoStatus("cannot close", temp_path_, errno);
  if (::rename(temp_path_.c_str(), path_.c_str()) != 0) {
    return ErrnoStatus("cannot rename to", path_, errno);
  }
  committed_ = true;
  return SyncFolder(ParentFolder(path_));
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<AtomicFile> file, AtomicFile::Create(path));
  QST_RETURN_IF_ERROR(file->Append(contents.data(), contents.size()));
  return file->Commit();
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, std::uint64_t max_bytes) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  if (file->size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", file->size(), " bytes, at most ", max_bytes, " expected"));
  }
  return std::string(reinterpret_cast<const char*>(file->data()), file->size());
}

absl::Status SyncFolder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("cannot open", folder, errno);
  const int result = ::fsync(fd);
  const int error_number = errno;
  ::close(fd);
  // Some network file systems cannot sync folders and say EINVAL; nothing better exists there.
  if (result != 0 && error_number != EINVAL) return ErrnoStatus("cannot sync", folder, error_number);
  return absl::OkStatus();
}

absl::StatusOr<std::uint64_t> FreeDiskBytes(const std::string& path) {
  struct statvfs info;
  if (::statvfs(path.c_str(), &info) != 0) return ErrnoStatus("cannot query the disk of", path, errno);
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

absl::Status CheckFreeDisk(const std::string& path, std::uint64_t needed_bytes) {
  QST_ASSIGN_OR_RETURN(const std::uint64_t free_bytes, FreeDiskBytes(path));
  if (free_bytes >= needed_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the disk of ", path, " has ", free_bytes >> 20,
                                                   " MiB left, needed are ", needed_bytes >> 20, " MiB"));
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  QST_CHECK(context_ != nullptr);
  QST_CHECK(EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_), EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_)); }

void Sha256::Update(const void* data, std::size_t num_bytes) {
  QST_CHECK(EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), data, num_bytes) == 1);
}

std::string Sha256::HexDigest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  QST_CHECK(EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_), digest, &length) == 1);
  static const char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) {
    hex += kDigits[digest[i] >> 4];
    hex += kDigits[digest[i] & 15];
  }
  return hex;
}

}  // namespace qst
