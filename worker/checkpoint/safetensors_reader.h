// Reads safetensors files through a memory mapping. Everything that the header claims is checked before
// anything is believed; after Open, no access can leave the file.
#ifndef QST_WORKER_CHECKPOINT_SAFETENSORS_READER_H_
#define QST_WORKER_CHECKPOINT_SAFETENSORS_READER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/tensor_source.h"

namespace qst {

class SafetensorsReader : public TensorSource {
 public:
  // Errors (each one line with the file and, where there is one, the tensor)
  //   kNotFound, kPermissionDenied: the file cannot be opened.
  //   kDataLoss: cut short: header or tensor data end before what the header says.
  //   kInvalidArgument: header that is not the JSON it should be, sizes that do not fit dtype and shape,
  //                     overlaps, gaps, repeated names, absurd counts.
  //   kUnimplemented: a dtype that is not known.
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> Open(const std::string& path);
  // The same over bytes in memory, which must outlive the reader. `name` stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> FromMemory(const std::uint8_t* data, std::uint64_t size,
                                                                       const std::string& name);

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  absl::Status ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count, void* out) const override;
  void Release(absl::string_view name) const override;

  // The stored bytes of a tensor, in the mapping itself: of any dtype, and aligned only as far as the file
  // happens to be. Null if there is no such tensor; a tensor of no elements gives a valid pointer.
  struct RawTensor {
    const std::uint8_t* data = nullptr;
    std::uint64_t num_bytes = 0;
    std::uint64_t file_offset = 0;
  };
  RawTensor Raw(absl::string_view name) const;

  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }
  std::uint64_t file_bytes() const { return size_; }
  // Null if made by FromMemory.
  const MappedFile* file() const { return file_.get(); }

 private:
  struct Entry {
    TensorInfo info;
    std::uint64_t begin = 0;  // bytes from the start of the tensor data
    std::uint64_t end = 0;
  };

  SafetensorsReader() = default;
  absl::Status Parse();

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  const std::uint8_t* data_ = nullptr;
  std::uint64_t size_ = 0;
  std::uint64_t data_begin_ = 0;  // file offset of the tensor data
  std::vector<std::string> names_;
  std::map<std::string, Entry, std::less<>> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_SAFETENSORS_READER_H_
