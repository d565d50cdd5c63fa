// Writes safetensors files: in one call when all tensors are in memory (side networks, training
// checkpoints), or tensor by tensor (model import).
#ifndef QST_WORKER_CHECKPOINT_SAFETENSORS_WRITER_H_
#define QST_WORKER_CHECKPOINT_SAFETENSORS_WRITER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/stream_digest.h"

namespace qst {

// One tensor to be written. data: row-major, little endian, NumBytes() long; not owned.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;  // empty: a scalar
  const void* data = nullptr;

  // -1 if a dimension is negative or the product overflows.
  std::int64_t NumBytes() const;
};

using SafetensorsMetadata = std::map<std::string, std::string>;

// The first bytes of a file: header length and header, padded so that data starts at a multiple of 64 bytes. The
// entries' data, *data_bytes in all, follow each other. kInvalidArgument: as WriteSafetensors.
absl::StatusOr<std::string> SafetensorsHeader(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                                              const SafetensorsMetadata& metadata, std::uint64_t* data_bytes);

// Writes all of `tensors`, in this order, to `path`: first to "<path>.tmp", synced, then renamed, so that a
// reader or a crash never meets half a file. Tensor data starts at a multiple of 64 bytes; tensors follow
// each other without gaps (the format allows none), so put those with larger elements first.
// Errors   kInvalidArgument: empty or repeated name, bad shape. kResourceExhausted: disk full.
//          kNotFound, kPermissionDenied: folder missing or not writable.
[[nodiscard]] absl::Status WriteSafetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                                            const SafetensorsMetadata& metadata);

// The same for tensors that come one after another and never lie in memory together. The entries' data
// pointers are ignored; Append must deliver their bytes in order, in pieces of any size. Without Finish
// nothing appears under `path`. `digest` gets all bytes of the file and must outlive the writer. Not thread-safe.
class SafetensorsStreamWriter {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsStreamWriter>> Create(const std::string& path,
                                                                         const std::vector<SafetensorsEntry>& tensors,
                                                                         const SafetensorsMetadata& metadata,
                                                                         StreamDigest* digest = nullptr);

  // kFailedPrecondition if this is more than the entries need.
  [[nodiscard]] absl::Status Append(const void* data, std::uint64_t num_bytes);
  // Syncs and renames. kFailedPrecondition if bytes are missing.
  [[nodiscard]] absl::Status Finish();

  std::uint64_t file_bytes() const { return file_->size(); }  // written so far

 private:
  SafetensorsStreamWriter(std::unique_ptr<AtomicFile> file, std::uint64_t expected_bytes, StreamDigest* digest);

  std::unique_ptr<AtomicFile> file_;
  std::uint64_t remaining_bytes_;
  StreamDigest* digest_;  // may be null
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_SAFETENSORS_WRITER_H_
