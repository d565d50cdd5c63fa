// A folder that appears under its name only when complete: imports and exports of models.
#ifndef QST_WORKER_CHECKPOINT_STAGED_FOLDER_H_
#define QST_WORKER_CHECKPOINT_STAGED_FOLDER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

// Filled as "<destination><suffix>", locked, then renamed by Finish. Without Finish, the destructor removes it. The
// lock tells a running writer from the remains of one that was killed, which Create clears away. Not thread-safe.
class StagedFolder {
 public:
  // work: "import", "export", for messages. Slashes at the end of `destination` do not count.
  // Errors   kAlreadyExists: destination is there, or another process fills it. kNotFound: no parent folder.
  //          kInvalidArgument: no destination. kPermissionDenied, kResourceExhausted, kInternal: cannot create.
  static absl::StatusOr<std::unique_ptr<StagedFolder>> Create(const std::string& destination, absl::string_view suffix,
                                                              absl::string_view work);
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  // Where to write until Finish.
  const std::string& path() const { return path_; }
  // Path of a file in it.
  std::string Path(absl::string_view file_name) const;
  // Syncs the folder (its files must be synced already) and gives it its name.
  absl::Status Finish();

 private:
  StagedFolder(std::string path, std::string destination, int fd);

  const std::string path_;
  const std::string destination_;
  const int fd_;  // open as long as the lock is held
  bool is_finished_ = false;
};

// The first of Create's checks alone, for callers with slow work to do before there is anything to write.
absl::Status CheckNewFolder(const std::string& destination, absl::string_view work);
// A path without slashes at its end.
std::string WithoutTrailingSlashes(std::string path);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_STAGED_FOLDER_H_
