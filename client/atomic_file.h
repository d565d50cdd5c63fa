// A file that appears under its name only when it is whole.
#ifndef QST_CLIENT_ATOMIC_FILE_H_
#define QST_CLIENT_ATOMIC_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

// Move-only. Unless committed, the destructor removes what was written.
class AtomicFile {
 public:
  // Writes to a new file beside `path`. The folder must exist.
  static absl::StatusOr<AtomicFile> Create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  absl::Status Append(absl::string_view data);
  // Syncs and renames: replaces `path` as one step.
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temp_path, int fd)
      : path_(std::move(path)), temp_path_(std::move(temp_path)), fd_(fd) {}
  void Abandon();

  std::string path_;
  std::string temp_path_;
  int fd_ = -1;
};

absl::Status WriteFileAtomically(const std::string& path, absl::string_view content);

// The whole file; kNotFound if it is absent, kInvalidArgument if it is larger than max_bytes or no regular file.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

// Creates the folder and those above it.
absl::Status MakeFolders(const std::string& path);

}  // namespace qst

#endif  // QST_CLIENT_ATOMIC_FILE_H_
