// Writes the files of a download into a folder, each appearing only when it is whole.
#ifndef QST_CLIENT_RESULT_WRITER_H_
#define QST_CLIENT_RESULT_WRITER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/atomic_file.h"
#include "proto/qst/v1/coordinator.pb.h"

namespace qst {

// Whether a path from elsewhere stays inside the folder it is put into: relative, no "..", no control characters.
bool IsSafeRelativePath(absl::string_view path);

struct WrittenFile {
  // Relative.
  std::string path;
  uint64_t size_bytes = 0;
};

class ResultWriter {
 public:
  explicit ResultWriter(std::string folder) : folder_(std::move(folder)) {}

  // kDataLoss if the stream contradicts itself or names a path outside the folder.
  absl::Status Write(const v1::DownloadResultsResponse& piece);
  // After the last piece.
  absl::Status Finish();

  const std::vector<WrittenFile>& files() const { return files_; }

 private:
  absl::Status FinishFile();

  const std::string folder_;
  std::optional<AtomicFile> file_;
  WrittenFile current_;
  uint64_t expected_bytes_ = 0;
  std::vector<WrittenFile> files_;
};

}  // namespace qst

#endif  // QST_CLIENT_RESULT_WRITER_H_
