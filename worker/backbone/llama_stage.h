// LLaMA's layers: RMSNorm, rotary positions, grouped-query attention, SwiGLU; linear layers with or without biases.
// Pre-norm residual blocks:
//   x = x + W_o attention(rotary(W_q n1(x)), rotary(W_k n1(x)), W_v n1(x))
//   x = x + W_down (silu(W_gate n2(x)) * W_up n2(x))
#ifndef QST_WORKER_BACKBONE_LLAMA_STAGE_H_
#define QST_WORKER_BACKBONE_LLAMA_STAGE_H_

#include <cstdint>
#include <vector>

#include "worker/backbone/decoder_stage.h"

namespace qst {

class LlamaStage : public DecoderStage {
 public:
  LlamaStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx);
  ~LlamaStage() override;

 private:
  struct Layer {
    AttentionWeights attention;
    WeightView gate, up, down;
    ConstMatrixView input_norm, post_attention_norm;
    ConstMatrixView gate_bias, up_bias, down_bias;  // empty unless the model has them
  };

  absl::Status AddEmbedding(const StoredModel& model) override;
  absl::Status AddLayer(const StoredModel& model, std::int64_t index) override;
  std::vector<LinearUse> LinearUses() const override;
  absl::Status Embed(const Indices& indices, const MatrixView& residual) override;
  absl::Status ForwardLayer(const TokenPass& pass, const Indices& indices, std::int64_t index,
                            const MatrixView& residual) override;
  absl::Status Rotate(const Indices& indices, const MatrixView& q, const MatrixView& k) override;
  absl::Status ForwardMlp(const Layer& layer, const MatrixView& residual);

  float eps() const { return static_cast<float>(config_.norm_eps); }

  ConstMatrixView embedding_;  // [V, d]; empty unless this stage embeds
  std::vector<Layer> layers_;
  ConstMatrixView inv_freq_;  // [1, head_dim / 2]
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_LLAMA_STAGE_H_
