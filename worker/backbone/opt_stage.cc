#include "worker/backbone/opt_stage.h"

#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {

OptStage::OptStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx)
    : DecoderStage(config, options, ctx, /*mlp_buffers=*/1), layers_(static_cast<std::size_t>(options.num_layers)) {}

// Before its buffers go.
OptStage::~OptStage() { Synchronize(ctx_).IgnoreError(); }

absl::Status OptStage::AddEmbedding(const StoredModel& model) {
  const OuterTensorNames names = OuterTensors(config_);
  const std::int64_t d = config_.hidden_size;
  const std::int64_t e = config_.embedding_width();
  QST_RETURN_IF_ERROR(AddTable(model, names.embedding, config_.vocab_size, e, &embedding_));
  QST_RETURN_IF_ERROR(AddTable(model, names.positions, config_.position_rows(), d, &positions_));
  return config_.has_projections() ? AddWeight(model, names.project_in, d, e, &project_in_) : absl::OkStatus();
}

absl::Status OptStage::AddNorm(const StoredModel& model, const std::string& name, Norm* norm) {
  if (!config_.has_norm_affine) return absl::OkStatus();
  QST_RETURN_IF_ERROR(AddVector(model, name + ".weight", config_.hidden_size, &norm->weight));
  return AddVector(model, name + ".bias", config_.hidden_size, &norm->bias);
}

absl::Status OptStage::AddLayer(const StoredModel& model, std::int64_t index) {
  const std::int64_t d = config_.hidden_size;
  const std::int64_t ff = config_.intermediate_size;
  const std::string prefix = LayerPrefix(config_, first_layer() + index);
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  AttentionWeights& attention = layer.attention;
  const auto add_linear = [&](const char* name, std::int64_t rows, std::int64_t cols, bool has_bias, WeightView* weight,
                              ConstMatrixView* bias) {
    QST_RETURN_IF_ERROR(AddWeight(model, prefix + name + ".weight", rows, cols, weight));
    return has_bias ? AddVector(model, prefix + name + ".bias", rows, bias) : absl::OkStatus();
  };
  const bool has_bias = config_.attention_bias;
  QST_RETURN_IF_ERROR(add_linear("self_attn.q_proj", d, d, has_bias, &attention.q, &attention.q_bias));
  QST_RETURN_IF_ERROR(add_linear("self_attn.k_proj", d, d, has_bias, &attention.k, &attention.k_bias));
  QST_RETURN_IF_ERROR(add_linear("self_attn.v_proj", d, d, has_bias, &attention.v, &attention.v_bias));
  QST_RETURN_IF_ERROR(
      add_linear("self_attn.out_proj", d, d, config_.attention_out_bias, &attention.o, &attention.o_bias));
  QST_RETURN_IF_ERROR(add_linear("fc1", ff, d, config_.mlp_bias, &layer.fc1, &layer.fc1_bias));
  QST_RETURN_IF_ERROR(add_linear("fc2", d, ff, config_.mlp_bias, &layer.fc2, &layer.fc2_bias));
  QST_RETURN_IF_ERROR(AddNorm(model, prefix + "self_attn_layer_norm", &layer.attention_norm));
  return AddNorm(model, prefix + "final_layer_norm", &layer.mlp_norm);
}

std::vector<DecoderStage::LinearUse> OptStage::LinearUses() const {
  std::vector<LinearUse> uses;
  if (!project_in_.empty()) uses.push_back({&project_in_, false, true, DType::kF32});
  for (const Layer& layer : layers_) {
    AddUses(layer.attention, &uses);
    uses.push_back({&layer.fc1, true, false, dtype_});
    uses.push_back({&layer.fc2, true, true, dtype_});
  }
  return uses;
}

std::int64_t OptStage::EmbedBytes() const { return config_.has_projections() ? 4 * config_.embedding_width() : 0; }

absl::Status OptStage::Embed(const Indices& indices, const MatrixView& residual) {
  const std::int64_t num_tokens = residual.rows;
  if (project_in_.empty()) {
    return EmbeddingLookup(ctx_, indices.tokens, num_tokens, embedding_, indices.positions, positions_, residual);
  }
  const std::int64_t e = config_.embedding_width();
  QST_RETURN_IF_ERROR(Grow(&embedded_, num_tokens * e * 4));
  const MatrixView embedded = Matrix(embedded_.as<float>(), num_tokens, e);
  QST_RETURN_IF_ERROR(
      EmbeddingLookup(ctx_, indices.tokens, num_tokens, embedding_, nullptr, ConstMatrixView(), embedded));
  QST_RETURN_IF_ERROR(
      EmbeddingLookup(ctx_, indices.positions, num_tokens, positions_, nullptr, ConstMatrixView(), residual));
  return Linear(ctx_, embedded, project_in_, ConstMatrixView(), residual, /*accumulate=*/true);
}

absl::StatusOr<MatrixView> OptStage::BlockInput(const Norm& norm, const MatrixView& residual) {
  QST_ASSIGN_OR_RETURN(const MatrixView input, Reuse(&normed_, residual.rows, config_.hidden_size));
  if (config_.is_post_norm) {
    QST_RETURN_IF_ERROR(AddInto(ctx_, residual, input, /*accumulate=*/false));
  } else {
    QST_RETURN_IF_ERROR(LayerNorm(ctx_, residual, norm.weight, norm.bias, static_cast<float>(config_.norm_eps), input,
                                  /*mean=*/nullptr, /*inv_std=*/nullptr));
  }
  return input;
}

absl::Status OptStage::NormAfter(const Norm& norm, const MatrixView& residual) {
  if (!config_.is_post_norm) return absl::OkStatus();
  return LayerNorm(ctx_, residual, norm.weight, norm.bias, static_cast<float>(config_.norm_eps), residual,
                   /*mean=*/nullptr, /*inv_std=*/nullptr);
}

absl::Status OptStage::ForwardLayer(const TokenPass& pass, const Indices& indices, std::int64_t index,
                                    const MatrixView& residual) {
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  QST_ASSIGN_OR_RETURN(const MatrixView input, BlockInput(layer.attention_norm, residual));
  QST_RETURN_IF_ERROR(AddAttention(pass, indices, input, &layer.attention, residual));
  QST_RETURN_IF_ERROR(NormAfter(layer.attention_norm, residual));
  return ForEachMlpGroup(residual, [&](const MatrixView& group) { return ForwardMlp(layer, group); });
}

absl::Status OptStage::ForwardMlp(const Layer& layer, const MatrixView& residual) {
  const Activation activation = config_.activation == MlpActivation::kGelu ? Activation::kGelu : Activation::kRelu;
  QST_ASSIGN_OR_RETURN(const MatrixView input, BlockInput(layer.mlp_norm, residual));
  QST_ASSIGN_OR_RETURN(const MatrixView inner, Reuse(&mlp_[0], residual.rows, config_.intermediate_size));
  QST_RETURN_IF_ERROR(Linear(ctx_, input, layer.fc1, layer.fc1_bias, inner, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Activate(ctx_, activation, inner, inner));
  QST_RETURN_IF_ERROR(Linear(ctx_, inner, layer.fc2, layer.fc2_bias, residual, /*accumulate=*/true));
  return NormAfter(layer.mlp_norm, residual);
}

}  // namespace qst
