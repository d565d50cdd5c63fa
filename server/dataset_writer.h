// Receives the content of a data set: pieces into a temporary file, hashed on the way, put in its place at the end.
#ifndef QST_SERVER_DATASET_WRITER_H_
#define QST_SERVER_DATASET_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/store_layout.h"

namespace qst {

// What Finish made.
struct ReceivedDataset {
  // sha256, hex.
  std::string id;
  std::uint64_t size_bytes = 0;
  // The name under which it lies in datasets/ID/.
  std::string file_name;
  bool was_there = false;
};

// Used by one thread at a time. Destroyed without Finish, it leaves nothing behind.
class DatasetWriter {
 public:
  // `file_name` is sanitized.
  static absl::StatusOr<std::unique_ptr<DatasetWriter>> Create(const StoreLayout& layout, absl::string_view file_name);
  ~DatasetWriter();
  DatasetWriter(const DatasetWriter&) = delete;
  DatasetWriter& operator=(const DatasetWriter&) = delete;

  absl::Status Append(absl::string_view piece);
  // Syncs and puts the file in its place; of a content that is there under another name, no second copy is kept.
  // `expected_sha256` empty = not checked. kInvalidArgument: no content, or not
  // what was announced (kDataLoss).
  absl::StatusOr<ReceivedDataset> Finish(absl::string_view expected_sha256);

 private:
  struct Hash;
  DatasetWriter(const StoreLayout& layout, std::string file_name, std::string upload_path, int descriptor);

  const StoreLayout layout_;
  const std::string file_name_;
  const std::string upload_path_;
  int descriptor_;
  std::uint64_t size_bytes_ = 0;
  std::unique_ptr<Hash> hash_;
};

}  // namespace qst

#endif  // QST_SERVER_DATASET_WRITER_H_
