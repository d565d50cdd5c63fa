// Sends data files to the coordinator.
#ifndef QST_CLIENT_UPLOAD_H_
#define QST_CLIENT_UPLOAD_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "client/coordinator_client.h"
#include "proto/qst/v1/coordinator.pb.h"

namespace qst {

// Pieces of an upload and of reading for the checksum.
inline constexpr size_t kUploadPieceBytes = 256 << 10;

struct FileDigest {
  // Hex.
  std::string sha256;
  uint64_t size_bytes = 0;
};

// kNotFound if there is no such file, kInvalidArgument if it is empty or no regular file.
absl::StatusOr<FileDigest> DigestFile(const std::string& path);

// Uploads the file under `name` ("" = none). on_progress(bytes sent) is called after every piece.
absl::StatusOr<v1::UploadDatasetResponse> UploadFile(CoordinatorClient& client, const std::string& path,
                                                     const std::string& name, const FileDigest& digest,
                                                     absl::FunctionRef<void(uint64_t)> on_progress);

}  // namespace qst

#endif  // QST_CLIENT_UPLOAD_H_
