// Finds the optional data folder that tests may use: $QST_SHARED_DATA, or else ../shared/data beside
// the workspace that the test was built from. Tests skip, visibly, where it does not exist.
#ifndef QST_TESTS_SUPPORT_SHARED_DATA_H_
#define QST_TESTS_SUPPORT_SHARED_DATA_H_

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>

namespace qst {

// The path of `relative` (such as "models/stories260K-hf") in the data folder, if it exists.
inline std::optional<std::string> SharedDataPath(const std::string& relative) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (const char* root = std::getenv("QST_SHARED_DATA")) {
    const fs::path path = fs::path(root) / relative;
    if (fs::exists(path, error)) return path.string();
    return std::nullopt;
  }
  // By hand from a checkout: beside any parent of the working folder. Bazel tests get the variable from
  // tests/run.sh, because their working folder lies in Bazel's own tree.
  for (fs::path folder = fs::current_path(error); !folder.empty(); folder = folder.parent_path()) {
    const fs::path path = folder / "shared" / "data" / relative;
    if (fs::exists(path, error)) return path.string();
    if (folder == folder.parent_path()) break;
  }
  return std::nullopt;
}

}  // namespace qst

#endif  // QST_TESTS_SUPPORT_SHARED_DATA_H_
