#include "client/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status FileError(absl::string_view path, absl::string_view doing) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot ", doing));
}

}  // namespace

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  std::string temp_path = path + ".part-XXXXXX";
  const int fd = mkostemp(temp_path.data(), O_CLOEXEC);
  if (fd < 0) return FileError(path, "create");
  // mkostemp makes files private; results are for whomever the umask allows.
  const mode_t mask = umask(0);
  umask(mask);
  if (fchmod(fd, 0666 & ~mask) != 0) return FileError(path, "set permissions");
  return AtomicFile(path, std::move(temp_path), fd);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)), temp_path_(std::move(other.temp_path_)), fd_(std::exchange(other.fd_, -1)) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  if (this != &other) {
    Abandon();
    path_ = std::move(other.path_);
    temp_path_ = std::move(other.temp_path_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

AtomicFile::~AtomicFile() { Abandon(); }

void AtomicFile::Abandon() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temp_path_.c_str());
  fd_ = -1;
}

absl::Status AtomicFile::Append(absl::string_view data) {
  while (!data.empty()) {
    const ssize_t written = write(fd_, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path_, "write");
    data.remove_prefix(written);
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (fsync(fd_) != 0) return FileError(path_, "sync");
  if (rename(temp_path_.c_str(), path_.c_str()) != 0) return FileError(path_, "rename to");
  close(fd_);
  fd_ = -1;
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view content) {
  QST_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  QST_RETURN_IF_ERROR(file.Append(content));
  return file.Commit();
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return FileError(path, "open");
  struct stat info;
  std::string content;
  absl::Status status;
  if (fstat(fd, &info) != 0) {
    status = FileError(path, "read");
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  } else {
    char buffer[16384];
    ssize_t n;
    while (status.ok() && (n = read(fd, buffer, sizeof buffer)) != 0) {
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        status = FileError(path, "read");
      } else if (content.size() + n > max_bytes) {
        status = absl::InvalidArgumentError(absl::StrCat(path, ": larger than ", max_bytes, " bytes"));
      } else {
        content.append(buffer, n);
      }
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return content;
}

absl::Status MakeFolders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    errno = error.value();
    return FileError(path, "create folder");
  }
  return absl::OkStatus();
}

}  // namespace qst
