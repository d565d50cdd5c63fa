// The tensors of a Hugging Face model folder: model.safetensors or pytorch_model.bin, or shards listed in
// model.safetensors.index.json or pytorch_model.bin.index.json. Safetensors are preferred where both are there.
#ifndef QST_WORKER_CHECKPOINT_HUGGINGFACE_FOLDER_H_
#define QST_WORKER_CHECKPOINT_HUGGINGFACE_FOLDER_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/tensor_source.h"

namespace qst {

class HuggingFaceFolder : public TensorSource {
 public:
  // Opens every shard. Errors as SafetensorsReader::Open and TorchFile::Open; kNotFound if the folder has no such file;
  // kInvalidArgument for an index that is broken, names files outside the folder, or promises a tensor that
  // its shard has not.
  static absl::StatusOr<std::unique_ptr<HuggingFaceFolder>> Open(const std::string& folder);

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  absl::Status ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count, void* out) const override;
  void Release(absl::string_view name) const override;

  std::uint64_t total_bytes() const { return total_bytes_; }  // of all shards
  // "safetensors" or "pytorch".
  const std::string& format() const { return format_; }

 private:
  explicit HuggingFaceFolder(std::string folder) : folder_(std::move(folder)) {}
  absl::Status AddShard(const std::string& file_name);
  absl::Status OpenShards(const std::string& index_path);

  struct Shard {
    std::string file_name;
    std::unique_ptr<TensorSource> tensors;
  };

  std::string folder_;
  std::string format_;
  std::uint64_t total_bytes_ = 0;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::map<std::string, const Shard*, std::less<>> shard_of_;
  std::vector<std::string> names_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_HUGGINGFACE_FOLDER_H_
