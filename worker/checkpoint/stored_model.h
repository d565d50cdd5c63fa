// A model of the model store, memory-mapped: weights are used where they lie in the file, so that opening is
// instant, a process pays memory only for the layers that it touches, and processes on one machine share them.
#ifndef QST_WORKER_CHECKPOINT_STORED_MODEL_H_
#define QST_WORKER_CHECKPOINT_STORED_MODEL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/store_format.h"

namespace qst {

// Immutable and thread-safe. Views point into the mapping and are valid as long as the model.
class StoredModel {
 public:
  // Checks config, manifest and the header of the weight file, and that all tensors of the model are there with
  // the right shapes; tensor data are not touched.
  // Errors   kNotFound: no stored model there. kDataLoss: files cut or not belonging together.
  //          kInvalidArgument, kUnimplemented: of the parsers.
  static absl::StatusOr<std::unique_ptr<StoredModel>> Open(const std::string& folder);

  const ModelConfig& config() const { return config_; }
  const StoreManifest& manifest() const { return manifest_; }
  const std::string& folder() const { return folder_; }
  // The weight file itself, for readers that go through it piece by piece.
  const SafetensorsReader& weights() const { return *weights_; }

  // A matrix, 4-bit or dense, by its Hugging Face name ("model.layers.0.mlp.up_proj.weight").
  // kNotFound; kDataLoss if its parts contradict each other.
  absl::StatusOr<WeightView> Weight(absl::string_view name) const;
  // A matrix that is stored unquantized (embedding, head). kFailedPrecondition if it is quantized.
  absl::StatusOr<ConstMatrixView> Dense(absl::string_view name) const;
  // All elements of a small tensor (norm weight, bias), converted to float32.
  absl::StatusOr<std::vector<float>> Floats(absl::string_view name) const;
  bool Has(absl::string_view name) const { return weights_->Find(name) != nullptr; }

  // The embedding table and the LM head [V, e]; one and the same memory if the model ties them.
  absl::StatusOr<ConstMatrixView> Embedding() const { return Dense(OuterTensors(config_).embedding); }
  absl::StatusOr<ConstMatrixView> Head() const { return Dense(OuterTensors(config_).head); }

  // Bytes in the weight file: of all tensors of layer i (from 0); of those before the first layer (embedding table,
  // positions); of what a worker that computes logits reads (last norm, and head, which is the embedding table if
  // tied).
  std::int64_t LayerBytes(std::int64_t i) const { return layer_bytes_[static_cast<std::size_t>(i)]; }
  std::int64_t EmbeddingBytes() const { return embedding_bytes_; }
  std::int64_t HeadBytes() const { return head_bytes_; }

  // Starts reading the tensors of layers [first, first + count) from disk, without waiting. A hint only.
  void Prefetch(std::int64_t first, std::int64_t count) const;
  // Takes the tensors of these layers, and the embedding with layer 0, from this process's memory; who reads them again
  // reads them from disk. A hint only.
  void Forget(std::int64_t first, std::int64_t count) const;

  // Reads the whole weight file and compares its checksum with the one noted at import. kDataLoss if they differ.
  absl::Status Verify() const;

  // One line: "smollm2: LlamaForCausalLM, 134.5M parameters, 30 layers, nf4, 92.3 MiB".
  std::string Summary() const;

 private:
  StoredModel() = default;
  absl::Status CheckTensors() const;
  void CountBytes();
  absl::StatusOr<WeightView> Quantized(absl::string_view name, const std::string& state_name, Quant4Type type) const;
  absl::StatusOr<const float*> FloatArray(const std::string& name, std::int64_t expected_elems) const;
  absl::Status NotTheTable(absl::string_view name) const;
  // The tensor of the model that a tensor of the file is or belongs to; null: none.
  const ModelTensor* TensorOf(absl::string_view name) const;
  // The name of the quant_state tensor of a weight, empty if it is not quantized; its type in *type.
  std::string QuantStateName(absl::string_view name, Quant4Type* type) const;

  std::string folder_;
  ModelConfig config_;
  StoreManifest manifest_;
  std::map<std::string, ModelTensor, std::less<>> tensors_;  // that the config asks for, by name
  std::unique_ptr<SafetensorsReader> weights_;
  std::vector<std::int64_t> layer_bytes_;
  std::int64_t embedding_bytes_ = 0;
  std::int64_t head_bytes_ = 0;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_STORED_MODEL_H_
