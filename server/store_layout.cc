#include "server/store_layout.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

namespace fs = std::filesystem;

absl::Status FileError(const std::error_code& error, absl::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot ", what, " ", path));
}

}  // namespace

absl::StatusOr<StoreLayout> StoreLayout::Open(const std::string& folder) {
  if (folder.empty()) return absl::InvalidArgumentError("the store folder is not named");
  std::error_code error;
  for (const char* part : {"", "/models", "/datasets", "/jobs"}) {
    fs::create_directories(folder + part, error);
    if (error) return FileError(error, "make", folder + part);
  }
  const fs::path root = fs::canonical(folder, error);
  if (error) return FileError(error, "resolve", folder);
  for (const auto& entry : fs::directory_iterator(root / "datasets", error)) {
    if (absl::StartsWith(entry.path().filename().string(), ".upload-")) {
      std::error_code ignored;
      fs::remove_all(entry.path(), ignored);
    }
  }
  return StoreLayout(root.string());
}

std::string StoreLayout::NewImportPath(const std::string& name) const {
  return absl::StrCat(root_, "/models/.import-", name, "-", RandomHex(8));
}

std::string StoreLayout::DatasetPath(const std::string& id, const std::string& file_name) const {
  return absl::StrCat(root_, "/datasets/", id, "/", file_name);
}

std::string StoreLayout::NewUploadPath() const { return absl::StrCat(root_, "/datasets/.upload-", RandomHex(16)); }

std::string CanonicalPath(const std::string& path) {
  std::error_code error;
  const fs::path canonical = fs::canonical(path, error);
  return error ? path : canonical.string();
}

std::string SanitizeFileName(absl::string_view file_name) {
  const std::size_t slash = file_name.find_last_of("/\\");
  if (slash != absl::string_view::npos) file_name.remove_prefix(slash + 1);
  std::string result;
  for (const char c : file_name) {
    const bool is_plain = absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
    result += is_plain ? c : '_';
  }
  // The end holds the extension: keep that.
  if (result.size() > 128) result.erase(0, result.size() - 128);
  result.erase(0, std::min(result.find_first_not_of('.'), result.size()));
  return result.empty() ? "data" : result;
}

std::string RandomHex(int count) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::random_device random;
  std::string hex;
  for (int i = 0; i < count; ++i) hex += kDigits[random() & 15];
  return hex;
}

absl::Status SyncFolder(const std::string& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", folder));
  const int result = fsync(descriptor);
  const int error = errno;
  close(descriptor);
  if (result != 0) return absl::ErrnoToStatus(error, absl::StrCat("cannot sync ", folder));
  return absl::OkStatus();
}

absl::Status ReplaceFolder(const std::string& from, const std::string& to) {
  std::error_code error;
  const std::string old = absl::StrCat(fs::path(to).parent_path().string(), "/.old-", RandomHex(16));
  const bool had_old = fs::exists(to, error);
  if (had_old) {
    fs::rename(to, old, error);
    if (error) return FileError(error, "move away", to);
  }
  fs::rename(from, to, error);
  if (error) {
    const absl::Status status = FileError(error, "rename", from);
    if (had_old) fs::rename(old, to, error);
    return status;
  }
  QST_RETURN_IF_ERROR(SyncFolder(fs::path(to).parent_path().string()));
  return had_old ? RemoveAll(old) : absl::OkStatus();
}

void RemoveStaleModelFolders(const StoreLayout& layout, const std::vector<std::string>& keep) {
  std::error_code error;
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(layout.root() + "/models", error)) {
    // A worker may still write to a folder beside the one it was given ("PATH.tmp"): keep that, too.
    const std::string path = entry.path().string();
    const bool is_kept = std::any_of(keep.begin(), keep.end(), [&](const std::string& kept) {
      return !kept.empty() && absl::StartsWith(path, kept);
    });
    if (absl::StartsWith(entry.path().filename().string(), ".") && !is_kept) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove_all(path, error);
}

absl::Status RemoveAll(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return FileError(error, "remove", path);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredFile>> ListFiles(const std::string& folder) {
  std::vector<StoredFile> files;
  std::error_code error;
  if (!fs::exists(fs::symlink_status(folder, error))) return files;
  fs::recursive_directory_iterator entry(folder, error);
  if (error) return FileError(error, "list", folder);
  for (; entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (error) return FileError(error, "list", folder);
    if (!fs::is_regular_file(entry->symlink_status(error))) continue;
    StoredFile file;
    file.path = entry->path().lexically_relative(folder).generic_string();
    file.size_bytes = entry->file_size(error);
    if (error) return FileError(error, "look at", entry->path().string());
    files.push_back(std::move(file));
  }
  std::sort(files.begin(), files.end(), [](const StoredFile& a, const StoredFile& b) { return a.path < b.path; });
  return files;
}

}  // namespace qst
