// The tensors of a PyTorch checkpoint file (pytorch_model.bin), read through a memory mapping: the zip archives that
// torch.save writes since version 1.6, and the plain sequence of pickles that it wrote before.
#ifndef QST_WORKER_CHECKPOINT_TORCH_FILE_H_
#define QST_WORKER_CHECKPOINT_TORCH_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/checkpoint/torch_pickle.h"

namespace qst {

// The tensors of the dictionary that was saved, or of its "state_dict" or "model" if it has no tensors itself; values
// that are no tensors are left out.
class TorchFile : public TensorSource {
 public:
  // kNotFound, kPermissionDenied: cannot be opened. kDataLoss: cut short.
  // kInvalidArgument: broken, a tensor that leaves its storage, no tensors, or a pickle that would run code (its name is
  // in the message). kUnimplemented: compressed archives, big-endian files, files of torch before 0.1.10 (tar).
  static absl::StatusOr<std::unique_ptr<TorchFile>> Open(const std::string& path);
  // The same over bytes in memory, which must outlive the reader. `name` stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<TorchFile>> FromMemory(const std::uint8_t* data, std::uint64_t size,
                                                               const std::string& name);

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  absl::Status ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count, void* out) const override;
  void Release(absl::string_view name) const override;

  const std::string& path() const { return path_; }
  std::uint64_t file_bytes() const { return size_; }

 private:
  struct Bytes {
    std::uint64_t offset = 0;  // in the file
    std::uint64_t size = 0;
  };
  struct Entry {
    TensorInfo info;
    std::vector<std::int64_t> strides;  // elements
    std::uint64_t file_offset = 0;      // of element (0, ..., 0)
    bool is_contiguous = true;
    Bytes extent;                       // all that the tensor touches
  };

  TorchFile() = default;
  absl::Status Parse();
  absl::Status ParseZip();
  absl::Status ParseLegacy();
  // The names and places of the stored members of a zip archive.
  absl::StatusOr<std::map<std::string, Bytes>> ReadZipDirectory() const;
  absl::Status AddTensors(const TorchPickle& pickle, const std::map<std::string, Bytes>& storages);
  absl::Status AddTensor(const std::string& name, const TorchTensorRef& tensor,
                         const std::map<std::string, Bytes>& storages);

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  const std::uint8_t* data_ = nullptr;
  std::uint64_t size_ = 0;
  std::vector<std::string> names_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_TORCH_FILE_H_
