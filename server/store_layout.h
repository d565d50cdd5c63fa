// Where things lie in the store folder, and the few file operations that keep them whole.
//
//   coordinator.db              jobs, events, data sets, models (job_store/)
//   models/NAME/                a model, as its import made it; models/.import-NAME-XXXX while it is made
//   datasets/SHA256/FILE        the content of a data set; datasets/.upload-XXXX while it arrives
//   jobs/ID/                    checkpoints and, in results/, what `qst pull` fetches; written by the side worker
//
// Names reach these functions only after ValidateName or as hex digits: no path leaves the store.
#ifndef QST_SERVER_STORE_LAYOUT_H_
#define QST_SERVER_STORE_LAYOUT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

class StoreLayout {
 public:
  // Makes the folder and its parts and resolves it to its canonical path; removes what interrupted uploads left.
  // kUnavailable or kPermissionDenied if it cannot.
  static absl::StatusOr<StoreLayout> Open(const std::string& folder);

  const std::string& root() const { return root_; }
  std::string DatabasePath() const { return root_ + "/coordinator.db"; }
  std::string ModelPath(const std::string& name) const { return root_ + "/models/" + name; }
  std::string NewImportPath(const std::string& name) const;
  std::string DatasetFolder(const std::string& id) const { return root_ + "/datasets/" + id; }
  std::string DatasetPath(const std::string& id, const std::string& file_name) const;
  std::string NewUploadPath() const;
  std::string JobPath(const std::string& id) const { return root_ + "/jobs/" + id; }
  std::string ResultsPath(const std::string& id) const { return JobPath(id) + "/results"; }

 private:
  explicit StoreLayout(std::string root) : root_(std::move(root)) {}
  std::string root_;
};

// Canonical form, links resolved; the input itself if it cannot be resolved.
std::string CanonicalPath(const std::string& path);

// The last component, of [A-Za-z0-9._-] only, at most 128 long, never hidden; "data" if nothing is left.
std::string SanitizeFileName(absl::string_view file_name);

// `count` random lower-case hex digits.
std::string RandomHex(int count);

// Makes the entries of `folder` durable.
absl::Status SyncFolder(const std::string& folder);

// Puts folder `from` in the place of folder `to`, which may exist; what was there is removed. Processes that read the
// old files through mappings keep them.
absl::Status ReplaceFolder(const std::string& from, const std::string& to);

// Removes what interrupted imports and replacements left under models/, except the folders in `keep`.
void RemoveStaleModelFolders(const StoreLayout& layout, const std::vector<std::string>& keep);

// Removes a file or folder with all that is in it; OK if it is not there.
absl::Status RemoveAll(const std::string& path);

struct StoredFile {
  // Relative to the folder, with '/'.
  std::string path;
  std::uint64_t size_bytes = 0;
};

// Regular files under `folder`, at any depth, by path. Links are left out: nothing outside can be reached through
// them. Empty if the folder is not there.
absl::StatusOr<std::vector<StoredFile>> ListFiles(const std::string& folder);

}  // namespace qst

#endif  // QST_SERVER_STORE_LAYOUT_H_
