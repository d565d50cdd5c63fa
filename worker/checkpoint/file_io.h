// Files as the checkpoint code needs them: memory-mapped for reading; for writing, such that a file
// either appears whole under its name or not at all, also across a power cut.
#ifndef QST_WORKER_CHECKPOINT_FILE_IO_H_
#define QST_WORKER_CHECKPOINT_FILE_IO_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

// kNotFound, kPermissionDenied, kResourceExhausted (disk full) or kInternal: "<what> <path>: <errno text>".
absl::Status ErrnoStatus(absl::string_view what, absl::string_view path, int error_number);

// A whole file, read-only, in the address space. Pages come in when touched and may be dropped again by
// the kernel, so a mapping costs memory only for what is read. Thread-compatible.
// A file that shrinks while it is mapped raises SIGBUS on access: model files are never changed in place.
class MappedFile {
 public:
  // Maps `path`. An empty file gives size() 0. kInvalidArgument if it is not a regular file.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::uint8_t* data() const { return data_; }
  std::uint64_t size() const { return size_; }  // bytes
  const std::string& path() const { return path_; }

  // Hints on bytes [offset, offset + length), widened (WillNeed) or narrowed (DontNeed) to whole pages;
  // they never change what is read. Ranges past the end are cut.
  void WillNeed(std::uint64_t offset, std::uint64_t length) const;  // start reading ahead
  void DontNeed(std::uint64_t offset, std::uint64_t length) const;  // drop from this process's memory

 private:
  MappedFile(std::string path, const std::uint8_t* data, std::uint64_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const std::uint8_t* data_;
  std::uint64_t size_;
};

// A file that appears under its name only when complete: written as "<path>.tmp", then synced and
// renamed by Commit, which also syncs the folder. Without Commit, the destructor removes it. Not
// thread-safe; one writer per path at a time.
class AtomicFile {
 public:
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  absl::Status Append(const void* data, std::uint64_t num_bytes);
  absl::Status Commit();

  std::uint64_t size() const { return size_; }  // bytes appended so far
  const std::string& path() const { return path_; }

 private:
  AtomicFile(std::string path, int fd);
  absl::Status Flush();

  std::string path_;
  std::string temp_path_;
  int fd_;
  std::uint64_t size_ = 0;
  std::uint64_t started_bytes_ = 0;  // that are on their way to the disk
  std::string buffer_;
  bool committed_ = false;
};

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents);

// The whole of a small file. kInvalidArgument if it is larger than `max_bytes` or not a regular file.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, std::uint64_t max_bytes);

// Makes creations and renames inside `folder` durable.
absl::Status SyncFolder(const std::string& folder);

// Bytes that this user may still write on the file system that holds `path` (which must exist).
absl::StatusOr<std::uint64_t> FreeDiskBytes(const std::string& path);
// kResourceExhausted, with both numbers, if that is less than needed_bytes.
absl::Status CheckFreeDisk(const std::string& path, std::uint64_t needed_bytes);

// SHA-256, fed piece by piece.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(const void* data, std::size_t num_bytes);
  std::string HexDigest();  // 64 lower-case digits; ends the computation

 private:
  void* context_;  // EVP_MD_CTX
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_FILE_IO_H_
