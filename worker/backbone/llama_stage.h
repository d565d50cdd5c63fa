// The LLaMA family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; linear layers with or without biases.
// Pre-norm residual blocks:
//   x = x + W_o attention(rotary(W_q n1(x)), rotary(W_k n1(x)), W_v n1(x))
//   x = x + W_down (silu(W_gate n2(x)) * W_up n2(x))
#ifndef QST_WORKER_BACKBONE_LLAMA_STAGE_H_
#define QST_WORKER_BACKBONE_LLAMA_STAGE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "worker/backbone/device_weights.h"
#include "worker/backbone/stage.h"
#include "worker/checkpoint/model_config.h"

namespace qst {

class LlamaStage : public Stage {
 public:
  // Knows its weights, in the model's mapping.
  static absl::StatusOr<std::unique_ptr<LlamaStage>> Open(const StoredModel& model, const StageOptions& options,
                                                          const OpContext& ctx);
  ~LlamaStage() override;
  // Then has them on its device, and may run.
  absl::Status Upload();

  StageMemory Memory(std::int64_t max_pass_tokens) const;

  absl::Status Forward(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink) override;
  std::int64_t hidden_size() const override { return config_.hidden_size; }
  std::int64_t first_layer() const override { return first_layer_; }
  std::int64_t num_layers() const override { return static_cast<std::int64_t>(layers_.size()); }

 private:
  struct Layer {
    WeightView q, k, v, o, gate, up, down;
    ConstMatrixView input_norm, post_attention_norm;
    // Empty unless the model has them.
    ConstMatrixView q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
    // KV cache [max_cached_tokens, num_kv_heads * head_dim], filled by passes that use it.
    DeviceMemory cached_keys, cached_values;
  };
  // What the ops read of a pass besides numbers, on the device.
  struct Indices {
    const std::int32_t* tokens = nullptr;     // [T]
    const std::int32_t* positions = nullptr;  // [T]
    SequenceOffsets queries;
    SequenceOffsets keys;  // of the cache, if the pass uses it
  };

  LlamaStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx);

  absl::Status AddLayer(const StoredModel& model, std::int64_t index);
  absl::Status CheckPass(const TokenPass& pass, const MatrixView& residual) const;
  absl::Status ForwardTokens(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink);
  // The same for few tokens on a GPU, with others beside them.
  absl::Status ForwardInCompany(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink);
  absl::StatusOr<Indices> UploadIndices(const TokenPass& pass);
  absl::Status ForwardLayer(const TokenPass& pass, const Indices& indices, Layer& layer, const MatrixView& residual);
  absl::Status ForwardAttention(const TokenPass& pass, const Indices& indices, Layer& layer,
                                const MatrixView& residual);
  absl::Status ForwardMlp(const Layer& layer, const MatrixView& residual);

  // What the linear ops of the layers keep on the stream of a GPU.
  std::int64_t LinearBytes(std::int64_t max_pass_tokens) const;
  std::int64_t q_width() const { return config_.num_heads * config_.head_dim; }
  std::int64_t kv_width() const { return config_.num_kv_heads * config_.head_dim; }
  absl::Status Grow(DeviceMemory* buffer, std::int64_t num_bytes);
  // [rows, cols] of the layers' type in the buffer.
  absl::StatusOr<MatrixView> Reuse(DeviceMemory* buffer, std::int64_t rows, std::int64_t cols);
  MatrixView CacheRows(DeviceMemory& cache, std::int64_t begin, std::int64_t end);

  const OpContext ctx_;
  const ModelConfig config_;
  const std::int64_t first_layer_;
  const std::int64_t max_cached_tokens_;
  const DType dtype_;
  // Tokens that the MLP runs over at a time.
  const std::int64_t mlp_tokens_;
  DeviceWeights weights_;
  ConstMatrixView embedding_;  // [V, d]; empty unless this stage embeds
  std::vector<Layer> layers_;
  ConstMatrixView inv_freq_;  // [1, head_dim / 2]
  // Reused from pass to pass.
  std::vector<std::int32_t> host_indices_;
  DeviceMemory indices_;
  DeviceMemory normed_, queries_, keys_, values_, attended_, gate_, up_;
  DeviceMemory company_;
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_LLAMA_STAGE_H_
