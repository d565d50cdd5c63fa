#include "client/result_writer.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/format.h"
#include "client/utf8.h"
#include "proto/support/status_macros.h"

namespace qst {

bool IsSafeRelativePath(absl::string_view path) {
  if (path.empty() || path.size() > 1024 || !IsValidUtf8(path)) return false;
  for (const char c : path) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\') return false;
  }
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    // An empty part is a leading, doubled or final slash.
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

absl::Status ResultWriter::Write(const v1::DownloadResultsResponse& piece) {
  if (!file_ || piece.path() != current_.path) {
    QST_RETURN_IF_ERROR(FinishFile());
    if (!IsSafeRelativePath(piece.path())) {
      return absl::DataLossError(absl::StrCat("the coordinator sent the unsafe path '", Fit(OneLine(piece.path()), 80),
                                              "'; nothing was written for it"));
    }
    const std::filesystem::path path = std::filesystem::path(folder_) / piece.path();
    QST_RETURN_IF_ERROR(MakeFolders(path.parent_path().string()));
    QST_ASSIGN_OR_RETURN(file_, AtomicFile::Create(path.string()));
    current_ = {piece.path(), 0};
    expected_bytes_ = piece.file_size();
  }
  current_.size_bytes += piece.data().size();
  if (current_.size_bytes > expected_bytes_) {
    return absl::DataLossError(absl::StrCat(current_.path, ": more than its ", expected_bytes_, " bytes arrived"));
  }
  return file_->Append(piece.data());
}

absl::Status ResultWriter::Finish() { return FinishFile(); }

absl::Status ResultWriter::FinishFile() {
  if (!file_) return absl::OkStatus();
  if (current_.size_bytes != expected_bytes_) {
    return absl::DataLossError(absl::StrCat(current_.path, ": ", current_.size_bytes, " of ", expected_bytes_,
                                            " bytes arrived; run the command again"));
  }
  QST_RETURN_IF_ERROR(file_->Commit());
  file_.reset();
  files_.push_back(current_);
  return absl::OkStatus();
}

}  // namespace qst
