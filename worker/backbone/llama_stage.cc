#include "worker/backbone/llama_stage.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/backbone/weight_source.h"

namespace qst {
namespace {

// The MLP runs over so many tokens at a time: its activations are several times wider than the residual stream, and a
// token's result does not depend on how tokens are grouped.
constexpr std::int64_t kMlpTokens = 1024;

std::int64_t WeightBytes(const WeightView& w) {
  if (!w.is_quantized) return w.dense.rows * w.dense.cols * DTypeBytes(w.dense.dtype);
  const Quant4View& q = w.quant4;
  std::int64_t bytes = (q.num_elems() + 1) / 2;
  if (q.absmax_codes == nullptr) return bytes + q.num_blocks() * 4;
  return bytes + q.num_blocks() + (q.num_blocks() + q.nested_block_size - 1) / q.nested_block_size * 4;
}

MatrixView Reuse(std::vector<float>& buffer, std::int64_t rows, std::int64_t cols) {
  if (static_cast<std::int64_t>(buffer.size()) < rows * cols) buffer.resize(rows * cols);
  return Matrix(buffer.data(), rows, cols);
}

ConstMatrixView RowVector(const std::vector<float>& values) {
  return Matrix(values.data(), values.empty() ? 0 : 1, static_cast<std::int64_t>(values.size()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Stage>> LlamaStage::Create(const StoredModel& model, std::int64_t first_layer,
                                                          std::int64_t num_layers, std::int64_t max_cached_tokens) {
  const ModelConfig& config = model.config();
  std::unique_ptr<LlamaStage> stage(new LlamaStage(config, first_layer, max_cached_tokens));
  if (first_layer == 0) {
    QST_ASSIGN_OR_RETURN(stage->embedding_, model.Dense("model.embed_tokens.weight"));
    if (stage->embedding_.rows != config.vocab_size || stage->embedding_.cols != config.hidden_size) {
      return absl::DataLossError(absl::StrCat("tensor model.embed_tokens.weight is [", stage->embedding_.rows, ", ",
                                              stage->embedding_.cols, "]; the model's config.json asks for [",
                                              config.vocab_size, ", ", config.hidden_size, "]"));
    }
    stage->weight_bytes_ += WeightBytes(WeightView::Dense(stage->embedding_));
  }
  for (std::int64_t i = first_layer; i < first_layer + num_layers; ++i) {
    QST_RETURN_IF_ERROR(stage->LoadLayer(model, i));
  }
  stage->inv_freq_ = RotaryInverseFrequencies(config);
  return std::unique_ptr<Stage>(std::move(stage));
}

absl::Status LlamaStage::LoadLayer(const StoredModel& model, std::int64_t index) {
  const std::int64_t d = config_.hidden_size;
  const std::int64_t q_width = config_.num_heads * config_.head_dim;
  const std::int64_t kv_width = config_.num_kv_heads * config_.head_dim;
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  Layer layer;
  QST_ASSIGN_OR_RETURN(layer.q, WeightOfShape(model, prefix + "self_attn.q_proj.weight", q_width, d));
  QST_ASSIGN_OR_RETURN(layer.k, WeightOfShape(model, prefix + "self_attn.k_proj.weight", kv_width, d));
  QST_ASSIGN_OR_RETURN(layer.v, WeightOfShape(model, prefix + "self_attn.v_proj.weight", kv_width, d));
  QST_ASSIGN_OR_RETURN(layer.o, WeightOfShape(model, prefix + "self_attn.o_proj.weight", d, q_width));
  QST_ASSIGN_OR_RETURN(layer.gate, WeightOfShape(model, prefix + "mlp.gate_proj.weight", config_.intermediate_size, d));
  QST_ASSIGN_OR_RETURN(layer.up, WeightOfShape(model, prefix + "mlp.up_proj.weight", config_.intermediate_size, d));
  QST_ASSIGN_OR_RETURN(layer.down, WeightOfShape(model, prefix + "mlp.down_proj.weight", d, config_.intermediate_size));
  QST_ASSIGN_OR_RETURN(layer.input_norm, VectorOfSize(model, prefix + "input_layernorm.weight", d));
  QST_ASSIGN_OR_RETURN(layer.post_attention_norm, VectorOfSize(model, prefix + "post_attention_layernorm.weight", d));
  if (config_.attention_bias) {
    QST_ASSIGN_OR_RETURN(layer.q_bias, VectorOfSize(model, prefix + "self_attn.q_proj.bias", q_width));
    QST_ASSIGN_OR_RETURN(layer.k_bias, VectorOfSize(model, prefix + "self_attn.k_proj.bias", kv_width));
    QST_ASSIGN_OR_RETURN(layer.v_bias, VectorOfSize(model, prefix + "self_attn.v_proj.bias", kv_width));
    QST_ASSIGN_OR_RETURN(layer.o_bias, VectorOfSize(model, prefix + "self_attn.o_proj.bias", d));
  }
  if (config_.mlp_bias) {
    QST_ASSIGN_OR_RETURN(layer.gate_bias,
                         VectorOfSize(model, prefix + "mlp.gate_proj.bias", config_.intermediate_size));
    QST_ASSIGN_OR_RETURN(layer.up_bias, VectorOfSize(model, prefix + "mlp.up_proj.bias", config_.intermediate_size));
    QST_ASSIGN_OR_RETURN(layer.down_bias, VectorOfSize(model, prefix + "mlp.down_proj.bias", d));
  }
  for (const WeightView* w : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
    weight_bytes_ += WeightBytes(*w);
  }
  weight_bytes_ += 2 * d * 4;
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

std::int64_t LlamaStage::activation_bytes(std::int64_t num_tokens) const {
  const std::int64_t q_width = config_.num_heads * config_.head_dim;
  const std::int64_t kv_width = config_.num_kv_heads * config_.head_dim;
  // normed, queries, keys, values, attended, and the residual stream itself; then the MLP's part.
  const std::int64_t per_token = 2 * config_.hidden_size + 2 * q_width + 2 * kv_width;
  return 4 * (num_tokens * per_token + std::min(num_tokens, kMlpTokens) * 2 * config_.intermediate_size);
}

absl::Status LlamaStage::CheckPass(const TokenPass& pass, const MatrixView& residual) const {
  const std::int64_t num_tokens = pass.num_tokens();
  if (residual.rows != num_tokens || residual.cols != config_.hidden_size || residual.dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, ": residual is [", residual.rows, ", ",
                                                   residual.cols, "] ", DTypeName(residual.dtype), ", need [",
                                                   num_tokens, ", ", config_.hidden_size, "] f32"));
  }
  if (pass.offsets.empty() || pass.offsets.front() != 0 || pass.offsets.back() != num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("pass ", pass.id, ": sequence offsets do not cover its ", num_tokens, " tokens"));
  }
  if (pass.past_tokens < 0 || (pass.past_tokens > 0 && !pass.uses_kv_cache)) {
    return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, ": past_tokens is ", pass.past_tokens,
                                                   pass.uses_kv_cache ? "" : " without a KV cache"));
  }
  for (std::int64_t s = 0; s < pass.num_sequences(); ++s) {
    const std::int64_t length = std::int64_t{pass.offsets[s + 1]} - pass.offsets[s];
    if (length < 0) {
      return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, ": sequence offsets fall at sequence ", s));
    }
    if (pass.past_tokens + length > config_.max_position_embeddings) {
      return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, ": sequence ", s, " has ",
                                                     pass.past_tokens + length, " tokens; the model's context is ",
                                                     config_.max_position_embeddings));
    }
  }
  if (pass.uses_kv_cache && (pass.num_sequences() != 1 || pass.past_tokens + num_tokens > max_cached_tokens_)) {
    return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, ": ", pass.num_sequences(), " sequences of ",
                                                   pass.past_tokens + num_tokens,
                                                   " tokens; the KV cache holds 1 sequence of ", max_cached_tokens_));
  }
  return absl::OkStatus();
}

absl::Status LlamaStage::Forward(const OpContext& ctx, const TokenPass& pass, const MatrixView& residual,
                                 const HiddenStateSink& sink) {
  QST_RETURN_IF_ERROR(CheckPass(pass, residual));
  positions_.resize(pass.num_tokens());
  for (std::int64_t s = 0; s < pass.num_sequences(); ++s) {
    for (std::int32_t i = pass.offsets[s]; i < pass.offsets[s + 1]; ++i) {
      positions_[i] = pass.past_tokens + i - pass.offsets[s];
    }
  }
  if (first_layer_ == 0) {
    QST_RETURN_IF_ERROR(
        EmbeddingLookup(ctx, pass.tokens.data(), pass.num_tokens(), embedding_, nullptr, ConstMatrixView(), residual));
    QST_RETURN_IF_ERROR(sink(0, residual));
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const std::int64_t layer = first_layer_ + static_cast<std::int64_t>(i);
    absl::Status status = ForwardLayer(ctx, pass, layers_[i], residual);
    if (!status.ok()) return Annotate(status, absl::StrCat("pass ", pass.id, ", layer ", layer));
    QST_RETURN_IF_ERROR(sink(layer + 1, residual));
  }
  return absl::OkStatus();
}

absl::Status LlamaStage::ForwardLayer(const OpContext& ctx, const TokenPass& pass, Layer& layer,
                                      const MatrixView& residual) {
  QST_RETURN_IF_ERROR(ForwardAttention(ctx, pass, layer, residual));
  for (std::int64_t begin = 0; begin < residual.rows; begin += kMlpTokens) {
    QST_RETURN_IF_ERROR(ForwardMlp(ctx, layer, Rows(residual, begin, std::min(begin + kMlpTokens, residual.rows))));
  }
  return absl::OkStatus();
}

absl::Status LlamaStage::ForwardAttention(const OpContext& ctx, const TokenPass& pass, Layer& layer,
                                          const MatrixView& residual) {
  const std::int64_t num_tokens = residual.rows;
  const std::int64_t q_width = config_.num_heads * config_.head_dim;
  const std::int64_t kv_width = config_.num_kv_heads * config_.head_dim;
  const MatrixView normed = Reuse(normed_, num_tokens, config_.hidden_size);
  const MatrixView q = Reuse(queries_, num_tokens, q_width);
  const MatrixView attended = Reuse(attended_, num_tokens, q_width);
  MatrixView k;
  MatrixView v;
  if (pass.uses_kv_cache) {
    const std::size_t capacity = static_cast<std::size_t>(max_cached_tokens_ * kv_width);
    if (layer.cached_keys.size() != capacity) {
      layer.cached_keys.resize(capacity);
      layer.cached_values.resize(capacity);
    }
    k = Matrix(layer.cached_keys.data() + pass.past_tokens * kv_width, num_tokens, kv_width);
    v = Matrix(layer.cached_values.data() + pass.past_tokens * kv_width, num_tokens, kv_width);
  } else {
    k = Reuse(keys_, num_tokens, kv_width);
    v = Reuse(values_, num_tokens, kv_width);
  }

  QST_RETURN_IF_ERROR(RmsNorm(ctx, residual, RowVector(layer.input_norm), static_cast<float>(config_.rms_norm_eps),
                              normed, /*inv_rms=*/nullptr));
  QST_RETURN_IF_ERROR(Linear(ctx, normed, layer.q, RowVector(layer.q_bias), q, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx, normed, layer.k, RowVector(layer.k_bias), k, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx, normed, layer.v, RowVector(layer.v_bias), v, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Rotary(ctx, q, config_.num_heads, positions_.data(), inv_freq_.data(), /*inverse=*/false));
  QST_RETURN_IF_ERROR(Rotary(ctx, k, config_.num_kv_heads, positions_.data(), inv_freq_.data(), /*inverse=*/false));

  AttentionShape shape;
  shape.num_heads = config_.num_heads;
  shape.num_kv_heads = config_.num_kv_heads;
  shape.head_dim = config_.head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  const SequenceOffsets q_offsets{pass.offsets.data(), pass.num_sequences()};
  if (pass.uses_kv_cache) {
    const std::int32_t num_keys = pass.past_tokens + static_cast<std::int32_t>(num_tokens);
    const std::int32_t cached_offsets[2] = {0, num_keys};
    QST_RETURN_IF_ERROR(Attention(ctx, shape, q, Matrix(layer.cached_keys.data(), num_keys, kv_width),
                                  Matrix(layer.cached_values.data(), num_keys, kv_width), q_offsets,
                                  SequenceOffsets{cached_offsets, 1}, attended, /*log_sum_exp=*/nullptr));
  } else {
    QST_RETURN_IF_ERROR(Attention(ctx, shape, q, k, v, q_offsets, q_offsets, attended, /*log_sum_exp=*/nullptr));
  }
  return Linear(ctx, attended, layer.o, RowVector(layer.o_bias), residual, /*accumulate=*/true);
}

absl::Status LlamaStage::ForwardMlp(const OpContext& ctx, const Layer& layer, const MatrixView& residual) {
  const MatrixView normed = Reuse(normed_, residual.rows, config_.hidden_size);
  const MatrixView gate = Reuse(gate_, residual.rows, config_.intermediate_size);
  const MatrixView up = Reuse(up_, residual.rows, config_.intermediate_size);
  QST_RETURN_IF_ERROR(RmsNorm(ctx, residual, RowVector(layer.post_attention_norm),
                              static_cast<float>(config_.rms_norm_eps), normed, /*inv_rms=*/nullptr));
  QST_RETURN_IF_ERROR(Linear(ctx, normed, layer.gate, RowVector(layer.gate_bias), gate, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx, normed, layer.up, RowVector(layer.up_bias), up, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(SwiGlu(ctx, gate, up, gate));
  return Linear(ctx, gate, layer.down, RowVector(layer.down_bias), residual, /*accumulate=*/true);
}

}  // namespace qst
