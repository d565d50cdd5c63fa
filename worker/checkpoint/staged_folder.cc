#include "worker/checkpoint/staged_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"

namespace qst {
namespace {

namespace fs = std::filesystem;

std::string ParentOf(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace

std::string WithoutTrailingSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

absl::Status CheckNewFolder(const std::string& destination, absl::string_view work) {
  if (destination.empty()) return absl::InvalidArgumentError(absl::StrCat("no destination to ", work, " to was given"));
  const std::string path = WithoutTrailingSlashes(destination);
  std::error_code error;
  if (fs::exists(fs::symlink_status(path, error))) {
    return absl::AlreadyExistsError(absl::StrCat(path, " is already there"));
  }
  const std::string parent = ParentOf(path);
  if (!fs::is_directory(parent, error)) {
    return absl::NotFoundError(absl::StrCat("no folder ", parent, " to ", work, " into"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StagedFolder>> StagedFolder::Create(const std::string& destination,
                                                                   absl::string_view suffix, absl::string_view work) {
  QST_RETURN_IF_ERROR(CheckNewFolder(destination, work));
  const std::string final_path = WithoutTrailingSlashes(destination);
  const std::string path = absl::StrCat(final_path, suffix);
  if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus("cannot create", path, errno);
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("cannot open", path, errno);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    ::close(fd);
    return absl::AlreadyExistsError(absl::StrCat("another ", work, " is writing ", path));
  }
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) fs::remove_all(entry.path(), error);
  return std::unique_ptr<StagedFolder>(new StagedFolder(path, final_path, fd));
}

StagedFolder::StagedFolder(std::string path, std::string destination, int fd)
    : path_(std::move(path)), destination_(std::move(destination)), fd_(fd) {}

StagedFolder::~StagedFolder() {
  std::error_code error;
  if (!is_finished_) fs::remove_all(path_, error);
  ::close(fd_);
}

std::string StagedFolder::Path(absl::string_view file_name) const { return absl::StrCat(path_, "/", file_name); }

absl::Status StagedFolder::Finish() {
  QST_RETURN_IF_ERROR(SyncFolder(path_));
  // Never onto what has come into being meanwhile: rename() alone would replace an empty folder.
  if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, destination_.c_str(), RENAME_NOREPLACE) != 0) {
    if (errno == EEXIST) return absl::AlreadyExistsError(absl::StrCat(destination_, " is already there"));
    // Some network file systems know no such flag.
    if (errno != EINVAL && errno != ENOSYS) return ErrnoStatus("cannot rename to", destination_, errno);
    if (::rename(path_.c_str(), destination_.c_str()) != 0) {
      return ErrnoStatus("cannot rename to", destination_, errno);
    }
  }
  is_finished_ = true;
  return SyncFolder(ParentOf(destination_));
}

}  // namespace qst
