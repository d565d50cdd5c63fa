// What stages of all families share: checks of passes, indices on the device, memory, KV caches, attention, the rule
// that a token's states do not depend on what else is in a pass. A family adds its embedding and its layers.
#ifndef QST_WORKER_BACKBONE_DECODER_STAGE_H_
#define QST_WORKER_BACKBONE_DECODER_STAGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "worker/backbone/device_weights.h"
#include "worker/backbone/stage.h"
#include "worker/checkpoint/model_config.h"

namespace qst {

class DecoderStage : public Stage {
 public:
  ~DecoderStage() override;
  // Once, before anything else: knows the weights, in the model's mapping.
  absl::Status Open(const StoredModel& model);
  // Then has them on its device, and may run.
  absl::Status Upload();

  StageMemory Memory(std::int64_t max_pass_tokens) const;

  absl::Status Forward(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink) override;
  std::int64_t hidden_size() const override { return config_.hidden_size; }
  std::int64_t first_layer() const override { return first_layer_; }
  std::int64_t num_layers() const override { return num_layers_; }

 protected:
  // The attention of a layer.
  struct AttentionWeights {
    WeightView q, k, v, o;
    // Empty unless the model has them.
    ConstMatrixView q_bias, k_bias, v_bias, o_bias;
    // What a token sees, as ModelConfig::WindowOf.
    std::int64_t window = 0;
    // KV cache [max_cached_tokens, num_kv_heads * head_dim], filled by passes that use it.
    DeviceMemory cached_keys, cached_values;
  };
  // What the ops read of a pass besides numbers, on the device.
  struct Indices {
    const std::int32_t* tokens = nullptr;     // [T]
    const std::int32_t* positions = nullptr;  // [T], from position_offset() on
    SequenceOffsets queries;
    SequenceOffsets keys;  // of the cache, if the pass uses it
  };

  // mlp_buffers: activations of intermediate_size that a token's feed-forward part holds at a time.
  DecoderStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx, std::int64_t mlp_buffers);

  // Adds what comes before the first layer; asked of the stage that embeds.
  virtual absl::Status AddEmbedding(const StoredModel& model) = 0;
  // Adds layer first_layer() + index; index ascends from 0 to num_layers() - 1. Views must not move afterwards.
  virtual absl::Status AddLayer(const StoredModel& model, std::int64_t index) = 0;
  // residual = h_f[0].
  virtual absl::Status Embed(const Indices& indices, const MatrixView& residual) = 0;
  virtual absl::Status ForwardLayer(const TokenPass& pass, const Indices& indices, std::int64_t index,
                                    const MatrixView& residual) = 0;
  // Added to positions: learned ones may begin further down in their table.
  virtual std::int64_t position_offset() const { return 0; }
  // Turns queries and keys by their positions; nothing where positions are learned.
  virtual absl::Status Rotate(const Indices&, const MatrixView&, const MatrixView&) { return absl::OkStatus(); }
  // Bytes a token takes of buffers that only Embed uses.
  virtual std::int64_t EmbedBytes() const { return 0; }
  // A weight of the stage and how it is used: with all tokens of a pass at once or with a group of the feed-forward
  // part's, from x to the layers' type or into the residual stream.
  struct LinearUse {
    const WeightView* weight = nullptr;
    bool is_mlp = false;
    bool is_into_residual = false;
    DType x = DType::kF32;
  };
  virtual std::vector<LinearUse> LinearUses() const = 0;
  // Those of an attention, for LinearUses.
  void AddUses(const AttentionWeights& weights, std::vector<LinearUse>* uses) const;

  // residual += O attention(Q normed, K normed, V normed).
  absl::Status AddAttention(const TokenPass& pass, const Indices& indices, const MatrixView& normed,
                            AttentionWeights* weights, const MatrixView& residual);
  // Calls `mlp` for groups of tokens.
  absl::Status ForEachMlpGroup(const MatrixView& residual, const std::function<absl::Status(const MatrixView&)>& mlp);

  // For AddLayer: name is the tensor's, with the layer's prefix.
  absl::Status AddWeight(const StoredModel& model, const std::string& name, std::int64_t rows, std::int64_t cols,
                         WeightView* view);
  absl::Status AddVector(const StoredModel& model, const std::string& name, std::int64_t n, ConstMatrixView* view);
  // A table that is stored unquantized.
  absl::Status AddTable(const StoredModel& model, const std::string& name, std::int64_t rows, std::int64_t cols,
                        ConstMatrixView* view);

  std::int64_t q_width() const { return config_.q_size(); }
  std::int64_t kv_width() const { return config_.kv_size(); }
  absl::Status Grow(DeviceMemory* buffer, std::int64_t num_bytes);
  // [rows, cols] of the layers' type in the buffer.
  absl::StatusOr<MatrixView> Reuse(DeviceMemory* buffer, std::int64_t rows, std::int64_t cols);

  const OpContext ctx_;
  const ModelConfig config_;
  const DType dtype_;  // of what the ops of a layer hand on to each other
  DeviceWeights weights_;
  // Reused from pass to pass.
  DeviceMemory normed_;
  DeviceMemory mlp_[2];

 private:
  absl::Status CheckPass(const TokenPass& pass, const MatrixView& residual) const;
  absl::Status ForwardTokens(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink);
  // The same for few tokens on a GPU, with others beside them.
  absl::Status ForwardInCompany(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink);
  absl::StatusOr<Indices> UploadIndices(const TokenPass& pass);
  // What the linear ops of the layers keep on the stream of a GPU.
  std::int64_t LinearBytes(std::int64_t max_pass_tokens) const;
  MatrixView CacheRows(DeviceMemory& cache, std::int64_t begin, std::int64_t end);

  const std::int64_t first_layer_;
  const std::int64_t num_layers_;
  const std::int64_t max_cached_tokens_;
  const std::int64_t mlp_buffers_;
  // Tokens that the feed-forward part runs over at a time.
  const std::int64_t mlp_tokens_;
  std::vector<std::int32_t> host_indices_;
  DeviceMemory indices_;
  DeviceMemory queries_, keys_, values_, attended_;
  DeviceMemory company_;
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_DECODER_STAGE_H_
