#include "worker/backbone/llama_stage.h"

#include <string>

#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {

LlamaStage::LlamaStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx)
    : DecoderStage(config, options, ctx, /*mlp_buffers=*/2), layers_(static_cast<std::size_t>(options.num_layers)) {
  weights_.Add(RotaryInverseFrequencies(config), &inv_freq_);
}

// Before its buffers go.
LlamaStage::~LlamaStage() { Synchronize(ctx_).IgnoreError(); }

absl::Status LlamaStage::AddEmbedding(const StoredModel& model) {
  return AddTable(model, OuterTensors(config_).embedding, config_.vocab_size, config_.hidden_size, &embedding_);
}

absl::Status LlamaStage::AddLayer(const StoredModel& model, std::int64_t index) {
  const std::int64_t d = config_.hidden_size;
  const std::int64_t ff = config_.intermediate_size;
  const std::string prefix = LayerPrefix(config_, first_layer() + index);
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  AttentionWeights& attention = layer.attention;
  attention.window = config_.WindowOf(first_layer() + index);
  const auto add_linear = [&](const char* name, std::int64_t rows, std::int64_t cols, bool has_bias, WeightView* weight,
                              ConstMatrixView* bias) {
    QST_RETURN_IF_ERROR(AddWeight(model, prefix + name + ".weight", rows, cols, weight));
    return has_bias ? AddVector(model, prefix + name + ".bias", rows, bias) : absl::OkStatus();
  };
  const bool has_bias = config_.attention_bias;
  QST_RETURN_IF_ERROR(add_linear("self_attn.q_proj", q_width(), d, has_bias, &attention.q, &attention.q_bias));
  QST_RETURN_IF_ERROR(add_linear("self_attn.k_proj", kv_width(), d, has_bias, &attention.k, &attention.k_bias));
  QST_RETURN_IF_ERROR(add_linear("self_attn.v_proj", kv_width(), d, has_bias, &attention.v, &attention.v_bias));
  QST_RETURN_IF_ERROR(
      add_linear("self_attn.o_proj", d, q_width(), config_.attention_out_bias, &attention.o, &attention.o_bias));
  QST_RETURN_IF_ERROR(add_linear("mlp.gate_proj", ff, d, config_.mlp_bias, &layer.gate, &layer.gate_bias));
  QST_RETURN_IF_ERROR(add_linear("mlp.up_proj", ff, d, config_.mlp_bias, &layer.up, &layer.up_bias));
  QST_RETURN_IF_ERROR(add_linear("mlp.down_proj", d, ff, config_.mlp_bias, &layer.down, &layer.down_bias));
  QST_RETURN_IF_ERROR(AddVector(model, prefix + "input_layernorm.weight", d, &layer.input_norm));
  return AddVector(model, prefix + "post_attention_layernorm.weight", d, &layer.post_attention_norm);
}

std::vector<DecoderStage::LinearUse> LlamaStage::LinearUses() const {
  std::vector<LinearUse> uses;
  for (const Layer& layer : layers_) {
    AddUses(layer.attention, &uses);
    for (const WeightView* w : {&layer.gate, &layer.up}) uses.push_back({w, true, false, dtype_});
    uses.push_back({&layer.down, true, true, dtype_});
  }
  return uses;
}

absl::Status LlamaStage::Embed(const Indices& indices, const MatrixView& residual) {
  return EmbeddingLookup(ctx_, indices.tokens, residual.rows, embedding_, nullptr, ConstMatrixView(), residual);
}

absl::Status LlamaStage::ForwardLayer(const TokenPass& pass, const Indices& indices, std::int64_t index,
                                      const MatrixView& residual) {
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  QST_ASSIGN_OR_RETURN(const MatrixView normed, Reuse(&normed_, residual.rows, config_.hidden_size));
  QST_RETURN_IF_ERROR(RmsNorm(ctx_, residual, layer.input_norm, eps(), normed, /*inv_rms=*/nullptr));
  QST_RETURN_IF_ERROR(AddAttention(pass, indices, normed, &layer.attention, residual));
  return ForEachMlpGroup(residual, [&](const MatrixView& group) { return ForwardMlp(layer, group); });
}

absl::Status LlamaStage::Rotate(const Indices& indices, const MatrixView& q, const MatrixView& k) {
  const float* const inv_freq = inv_freq_.row<float>(0);
  QST_RETURN_IF_ERROR(Rotary(ctx_, q, config_.num_heads, indices.positions, inv_freq, /*inverse=*/false));
  return Rotary(ctx_, k, config_.num_kv_heads, indices.positions, inv_freq, /*inverse=*/false);
}

absl::Status LlamaStage::ForwardMlp(const Layer& layer, const MatrixView& residual) {
  const std::int64_t ff = config_.intermediate_size;
  QST_ASSIGN_OR_RETURN(const MatrixView normed, Reuse(&normed_, residual.rows, config_.hidden_size));
  QST_ASSIGN_OR_RETURN(const MatrixView gate, Reuse(&mlp_[0], residual.rows, ff));
  QST_ASSIGN_OR_RETURN(const MatrixView up, Reuse(&mlp_[1], residual.rows, ff));
  QST_RETURN_IF_ERROR(RmsNorm(ctx_, residual, layer.post_attention_norm, eps(), normed, /*inv_rms=*/nullptr));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, layer.gate, layer.gate_bias, gate, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, layer.up, layer.up_bias, up, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(SwiGlu(ctx_, gate, up, gate));
  return Linear(ctx_, gate, layer.down, layer.down_bias, residual, /*accumulate=*/true);
}

}  // namespace qst
