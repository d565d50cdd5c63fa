// The GGUF container (versions 2 and 3, little endian): metadata and a directory of tensors. Knows nothing of
// models; gguf_model.h gives its contents a meaning.
//
//   "GGUF", version u32, tensor count u64, metadata count u64
//   metadata: key string, type u32, value;   string: length u64, bytes;   array: type u32, count u64, values
//   tensors: name string, number of dimensions u32, dimensions u64 (fastest first), type u32, offset u64
//   padding to general.alignment (32 unless given), then tensor data, at the offsets counted from there
#ifndef QST_WORKER_CHECKPOINT_GGUF_FILE_H_
#define QST_WORKER_CHECKPOINT_GGUF_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/ggml_blocks.h"

namespace qst {

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::kF32;
  std::vector<std::int64_t> dims;  // as stored: fastest dimension first
  std::int64_t num_elems = 0;
  std::uint64_t file_offset = 0;  // bytes from the start of the file
  std::uint64_t num_bytes = 0;
};

class GgufFile {
 public:
  // Errors (one line, with file and key or tensor): kNotFound, kPermissionDenied; kDataLoss: the file ends
  // before what it announces; kInvalidArgument: not GGUF, or claims that contradict each other (overlapping
  // tensors, counts that cannot be, repeated keys); kUnimplemented: version, byte order, or a tensor type
  // without a reader.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // Over bytes in memory, which must outlive the object; `name` stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<GgufFile>> FromMemory(const std::uint8_t* data, std::uint64_t size,
                                                              const std::string& name);

  // Metadata. Without a value if there is no such key; kInvalidArgument if it has another type.
  absl::StatusOr<std::optional<std::int64_t>> Int(absl::string_view key) const;  // any integer type
  absl::StatusOr<std::optional<double>> Float(absl::string_view key) const;      // any number type
  absl::StatusOr<std::optional<bool>> Bool(absl::string_view key) const;
  absl::StatusOr<std::optional<std::string>> String(absl::string_view key) const;
  absl::StatusOr<std::optional<std::vector<std::string>>> Strings(absl::string_view key) const;
  absl::StatusOr<std::optional<std::vector<std::int64_t>>> Ints(absl::string_view key) const;
  absl::StatusOr<std::optional<std::vector<double>>> Floats(absl::string_view key) const;
  // Whether the key holds an array, whatever its elements.
  bool IsArray(absl::string_view key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const std::uint8_t* data() const { return data_; }
  std::uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  const MappedFile* file() const { return file_.get(); }  // null if made by FromMemory

 private:
  struct Value {
    std::uint32_t type = 0;  // of the value, or of an array's elements
    bool is_array = false;
    std::uint64_t count = 1;        // elements of an array
    std::uint64_t file_offset = 0;  // of the first element
  };
  class Cursor;

  GgufFile() = default;
  absl::Status Parse();
  absl::Status ParseMetadata(Cursor& cursor, std::uint64_t count);
  absl::Status ParseTensors(Cursor& cursor, std::uint64_t count);
  absl::Status CheckLayout();
  const Value* Find(absl::string_view key) const;
  absl::Status WrongType(absl::string_view key, absl::string_view wanted) const;
  std::int64_t IntAt(const Value& value, std::uint64_t index) const;
  double FloatAt(const Value& value, std::uint64_t index) const;

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  const std::uint8_t* data_ = nullptr;
  std::uint64_t size_ = 0;
  std::map<std::string, Value, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_GGUF_FILE_H_
