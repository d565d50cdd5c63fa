// The LLaMA family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; linear layers with or without biases.
// Pre-norm residual blocks:
//   x = x + W_o attention(rotary(W_q n1(x)), rotary(W_k n1(x)), W_v n1(x))
//   x = x + W_down (silu(W_gate n2(x)) * W_up n2(x))
#ifndef QST_WORKER_BACKBONE_LLAMA_STAGE_H_
#define QST_WORKER_BACKBONE_LLAMA_STAGE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "worker/backbone/stage.h"
#include "worker/checkpoint/model_config.h"

namespace qst {

class LlamaStage : public Stage {
 public:
  static absl::StatusOr<std::unique_ptr<Stage>> Create(const StoredModel& model, std::int64_t first_layer,
                                                       std::int64_t num_layers, std::int64_t max_cached_tokens);

  absl::Status Forward(const OpContext& ctx, const TokenPass& pass, const MatrixView& residual,
                       const HiddenStateSink& sink) override;
  std::int64_t hidden_size() const override { return config_.hidden_size; }
  std::int64_t first_layer() const override { return first_layer_; }
  std::int64_t num_layers() const override { return static_cast<std::int64_t>(layers_.size()); }
  std::int64_t weight_bytes() const override { return weight_bytes_; }
  std::int64_t activation_bytes(std::int64_t num_tokens) const override;

 private:
  struct Layer {
    WeightView q, k, v, o, gate, up, down;
    std::vector<float> input_norm, post_attention_norm;
    // Empty unless the model has them.
    std::vector<float> q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
    // KV cache [max_cached_tokens, num_kv_heads * head_dim], filled by passes that use it.
    std::vector<float> cached_keys, cached_values;
  };

  LlamaStage(const ModelConfig& config, std::int64_t first_layer, std::int64_t max_cached_tokens)
      : config_(config),
        first_layer_(first_layer),
        max_cached_tokens_(std::min(max_cached_tokens, config.max_position_embeddings)) {}

  absl::Status LoadLayer(const StoredModel& model, std::int64_t index);
  absl::Status CheckPass(const TokenPass& pass, const MatrixView& residual) const;
  absl::Status ForwardLayer(const OpContext& ctx, const TokenPass& pass, Layer& layer, const MatrixView& residual);
  absl::Status ForwardAttention(const OpContext& ctx, const TokenPass& pass, Layer& layer, const MatrixView& residual);
  absl::Status ForwardMlp(const OpContext& ctx, const Layer& layer, const MatrixView& residual);

  ModelConfig config_;
  std::int64_t first_layer_;
  std::int64_t max_cached_tokens_;
  std::int64_t weight_bytes_ = 0;
  ConstMatrixView embedding_;  // [V, d]; empty unless this stage embeds
  std::vector<Layer> layers_;
  std::vector<float> inv_freq_;  // [head_dim / 2]
  // Reused from pass to pass.
  std::vector<std::int32_t> positions_;
  std::vector<float> normed_, queries_, keys_, values_, attended_, gate_, up_;
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_LLAMA_STAGE_H_
