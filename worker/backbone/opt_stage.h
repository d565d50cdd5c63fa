// OPT's layers: LayerNorm, learned positions, a feed-forward part of two layers; biases unless the config says
// otherwise. Pre-norm, all sizes but 350M:
//   x = x + W_o attention(n1(x));  x = x + W_2 act(W_1 n2(x))
// Post-norm, 350M, whose tokens are embedded more narrowly and projected up:
//   x = n1(x + W_o attention(x));  x = n2(x + W_2 act(W_1 x))
#ifndef QST_WORKER_BACKBONE_OPT_STAGE_H_
#define QST_WORKER_BACKBONE_OPT_STAGE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "worker/backbone/decoder_stage.h"

namespace qst {

class OptStage : public DecoderStage {
 public:
  OptStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx);
  ~OptStage() override;

 private:
  // Both empty: without an affine part.
  struct Norm {
    ConstMatrixView weight, bias;
  };
  struct Layer {
    AttentionWeights attention;
    WeightView fc1, fc2;
    ConstMatrixView fc1_bias, fc2_bias;  // empty unless the model has them
    Norm attention_norm, mlp_norm;
  };

  absl::Status AddEmbedding(const StoredModel& model) override;
  absl::Status AddLayer(const StoredModel& model, std::int64_t index) override;
  std::vector<LinearUse> LinearUses() const override;
  std::int64_t position_offset() const override { return kOptPositionOffset; }
  std::int64_t EmbedBytes() const override;
  absl::Status Embed(const Indices& indices, const MatrixView& residual) override;
  absl::Status ForwardLayer(const TokenPass& pass, const Indices& indices, std::int64_t index,
                            const MatrixView& residual) override;
  absl::Status ForwardMlp(const Layer& layer, const MatrixView& residual);

  absl::Status AddNorm(const StoredModel& model, const std::string& name, Norm* norm);
  // What a block computes from: the normed residual stream, or where norms follow, itself in the layers' type.
  absl::StatusOr<MatrixView> BlockInput(const Norm& norm, const MatrixView& residual);
  // Where norms follow.
  absl::Status NormAfter(const Norm& norm, const MatrixView& residual);

  ConstMatrixView embedding_;  // [V, e]; empty, as the next two, unless this stage embeds
  ConstMatrixView positions_;  // [position_rows, d]
  WeightView project_in_;      // [d, e]; empty if e is d
  std::vector<Layer> layers_;
  DeviceMemory embedded_;
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_OPT_STAGE_H_
