// The tensors of a Hugging Face model folder: model.safetensors, or shards listed in
// model.safetensors.index.json.
#ifndef QST_WORKER_CHECKPOINT_HUGGINGFACE_FOLDER_H_
#define QST_WORKER_CHECKPOINT_HUGGINGFACE_FOLDER_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/tensor_source.h"

namespace qst {

class HuggingFaceFolder : public TensorSource {
 public:
  // Opens every shard. Errors as SafetensorsReader::Open; kNotFound if the folder has neither file;
  // kInvalidArgument for an index that is broken, names files outside the folder, or promises a tensor that
  // its shard has not.
  static absl::StatusOr<std::unique_ptr<HuggingFaceFolder>> Open(const std::string& folder);

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  void Release(absl::string_view name) const override;

  std::uint64_t total_bytes() const;  // of all shards

 private:
  explicit HuggingFaceFolder(std::string folder) : folder_(std::move(folder)) {}
  absl::Status AddShard(const std::string& file_name);
  absl::Status OpenShards(const std::string& index_path);

  std::string folder_;
  std::vector<std::unique_ptr<SafetensorsReader>> shards_;
  std::map<std::string, const SafetensorsReader*, std::less<>> shard_of_;
  std::vector<std::string> names_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_HUGGINGFACE_FOLDER_H_
