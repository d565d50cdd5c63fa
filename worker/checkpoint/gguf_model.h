// A GGUF file of a model with LLaMA layers (families/: those with a gguf_architecture) seen as a Hugging Face model:
// its config, its tokenizer, and its tensors under Hugging Face names, in Hugging Face layout.
#ifndef QST_WORKER_CHECKPOINT_GGUF_MODEL_H_
#define QST_WORKER_CHECKPOINT_GGUF_MODEL_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/checkpoint/families/family.h"
#include "worker/checkpoint/gguf_file.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/text/tokenizer_definition.h"

namespace qst {

// The tokenizer.ggml.* metadata as plain data. kNotFound if the file has none; kUnimplemented for a kind other
// than "gpt2" and "llama"; kInvalidArgument for fields of wrong type or length.
absl::StatusOr<TokenizerDefinition> ReadGgufTokenizer(const GgufFile& file);

class GgufModel : public TensorSource {
 public:
  // Errors   kUnimplemented: an architecture that no family names, mixture of experts, partial or scaled rotary
  //          embedding, tensors that such a model does not have. kInvalidArgument: metadata missing or out of
  //          range.
  static absl::StatusOr<std::unique_ptr<GgufModel>> Create(std::unique_ptr<GgufFile> file);

  const ModelConfig& config() const { return config_; }
  const GgufFile& file() const { return *file_; }

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  void Release(absl::string_view name) const override;

 private:
  struct Entry {
    TensorInfo info;
    const GgufTensor* tensor = nullptr;
    // Not 0 for query and key projections of interleaving families. There ggml rotates neighbouring pairs of a head's
    // channels, Hugging Face pairs channel j with j + head_dim / 2, so files made for ggml have the rows of each head
    // interleaved: row j + half * (head_dim / 2) of a head here is row 2 j + half of that head in the file.
    std::int64_t head_dim = 0;
  };

  explicit GgufModel(std::unique_ptr<GgufFile> file) : file_(std::move(file)) {}
  absl::Status ReadFamily();
  absl::Status ReadConfig();
  absl::Status ReadRope();
  absl::Status MapTensors();
  absl::Status CheckRopeFactors(const GgufTensor& tensor) const;
  // Part of one row as it lies in the file.
  void ReadRowPart(const GgufTensor& tensor, std::int64_t row, std::int64_t first, std::int64_t count,
                   float* out) const;

  std::unique_ptr<GgufFile> file_;
  const FamilyDefinition* family_ = nullptr;
  ModelConfig config_;
  std::vector<std::string> names_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_GGUF_MODEL_H_
