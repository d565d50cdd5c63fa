#include "worker/backbone/llama_stage.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/backbone/weight_source.h"

namespace qst {
namespace {

// The MLP runs over so many tokens at a time: its activations are several times wider than the residual stream, and a
// token's result does not depend on how tokens are grouped.
constexpr std::int64_t kMinMlpTokens = 1024;
// On a GPU unpacking the weights costs as much as multiplying some 300 tokens with them, so a group takes what a
// sixteenth of the memory holds, at most this.
constexpr std::int64_t kMaxMlpBytes = std::int64_t{1} << 30;
constexpr std::int64_t kMlpMemoryShare = 16;
// Groups are whole tiles of the matrix product.
constexpr std::int64_t kMlpGranularity = 256;

std::int64_t MlpTokens(const OpContext& ctx, const ModelConfig& config, DType dtype) {
  if (ctx.device == DeviceType::kCpu) return kMinMlpTokens;
  const std::int64_t budget = cuda::DeviceOf(*ctx.stream).memory_budget_bytes();
  const std::int64_t token_bytes = 2 * config.intermediate_size * DTypeBytes(dtype);
  const std::int64_t tokens = std::min(kMaxMlpBytes, budget / kMlpMemoryShare) / token_bytes;
  return std::max(kMinMlpTokens, tokens / kMlpGranularity * kMlpGranularity);
}

}  // namespace

LlamaStage::LlamaStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx)
    : ctx_(ctx),
      config_(config),
      first_layer_(options.first_layer),
      max_cached_tokens_(std::min(options.max_cached_tokens, config.max_position_embeddings)),
      dtype_(ctx.device == DeviceType::kCuda ? options.cuda_dtype : DType::kF32),
      mlp_tokens_(MlpTokens(ctx, config, dtype_)) {}

LlamaStage::~LlamaStage() { Synchronize(ctx_).IgnoreError(); }

absl::StatusOr<std::unique_ptr<LlamaStage>> LlamaStage::Open(const StoredModel& model, const StageOptions& options,
                                                             const OpContext& ctx) {
  const ModelConfig& config = model.config();
  auto stage = absl::WrapUnique(new LlamaStage(config, options, ctx));
  if (options.first_layer == 0) {
    QST_ASSIGN_OR_RETURN(stage->embedding_, model.Dense("model.embed_tokens.weight"));
    if (stage->embedding_.rows != config.vocab_size || stage->embedding_.cols != config.hidden_size) {
      return absl::DataLossError(absl::StrCat("tensor model.embed_tokens.weight is [", stage->embedding_.rows, ", ",
                                              stage->embedding_.cols, "]; the model's config.json asks for [",
                                              config.vocab_size, ", ", config.hidden_size, "]"));
    }
    stage->weights_.Add(&stage->embedding_);
  }
  // Views must not move once they were added.
  stage->layers_.resize(static_cast<std::size_t>(options.num_layers));
  for (std::int64_t i = 0; i < options.num_layers; ++i) {
    QST_RETURN_IF_ERROR(stage->AddLayer(model, i));
  }
  stage->weights_.Add(RotaryInverseFrequencies(config), &stage->inv_freq_);
  return stage;
}

absl::Status LlamaStage::AddLayer(const StoredModel& model, std::int64_t index) {
  const std::int64_t d = config_.hidden_size;
  const std::int64_t ff = config_.intermediate_size;
  const std::string prefix = absl::StrCat("model.layers.", first_layer_ + index, ".");
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  const auto add_weight = [&](const char* name, std::int64_t rows, std::int64_t cols, WeightView* view) {
    absl::StatusOr<WeightView> weight = WeightOfShape(model, prefix + name, rows, cols);
    if (!weight.ok()) return weight.status();
    *view = *weight;
    weights_.Add(view);
    return absl::OkStatus();
  };
  const auto add_vector = [&](const char* name, std::int64_t n, ConstMatrixView* view) {
    absl::StatusOr<std::vector<float>> values = VectorOfSize(model, prefix + name, n);
    if (!values.ok()) return values.status();
    weights_.Add(*std::move(values), view);
    return absl::OkStatus();
  };
  QST_RETURN_IF_ERROR(add_weight("self_attn.q_proj.weight", q_width(), d, &layer.q));
  QST_RETURN_IF_ERROR(add_weight("self_attn.k_proj.weight", kv_width(), d, &layer.k));
  QST_RETURN_IF_ERROR(add_weight("self_attn.v_proj.weight", kv_width(), d, &layer.v));
  QST_RETURN_IF_ERROR(add_weight("self_attn.o_proj.weight", d, q_width(), &layer.o));
  QST_RETURN_IF_ERROR(add_weight("mlp.gate_proj.weight", ff, d, &layer.gate));
  QST_RETURN_IF_ERROR(add_weight("mlp.up_proj.weight", ff, d, &layer.up));
  QST_RETURN_IF_ERROR(add_weight("mlp.down_proj.weight", d, ff, &layer.down));
  QST_RETURN_IF_ERROR(add_vector("input_layernorm.weight", d, &layer.input_norm));
  QST_RETURN_IF_ERROR(add_vector("post_attention_layernorm.weight", d, &layer.post_attention_norm));
  if (config_.attention_bias) {
    QST_RETURN_IF_ERROR(add_vector("self_attn.q_proj.bias", q_width(), &layer.q_bias));
    QST_RETURN_IF_ERROR(add_vector("self_attn.k_proj.bias", kv_width(), &layer.k_bias));
    QST_RETURN_IF_ERROR(add_vector("self_attn.v_proj.bias", kv_width(), &layer.v_bias));
    QST_RETURN_IF_ERROR(add_vector("self_attn.o_proj.bias", d, &layer.o_bias));
  }
  if (config_.mlp_bias) {
    QST_RETURN_IF_ERROR(add_vector("mlp.gate_proj.bias", ff, &layer.gate_bias));
    QST_RETURN_IF_ERROR(add_vector("mlp.up_proj.bias", ff, &layer.up_bias));
    QST_RETURN_IF_ERROR(add_vector("mlp.down_proj.bias", d, &layer.down_bias));
  }
  return absl::OkStatus();
}

absl::Status LlamaStage::Upload() { return weights_.Upload(ctx_); }

StageMemory LlamaStage::Memory(std::int64_t max_pass_tokens) const {
  const std::int64_t element_bytes = DTypeBytes(dtype_);
  StageMemory memory;
  memory.weight_bytes = ctx_.device == DeviceType::kCuda ? weights_.device_bytes() : weights_.num_bytes();
  memory.cache_bytes = num_layers() * 2 * max_cached_tokens_ * kv_width() * element_bytes;
  // normed, queries, keys, values, attended; the residual stream; tokens and positions. Then the MLP's gate and up.
  const std::int64_t token_bytes =
      element_bytes * (config_.hidden_size + 2 * q_width() + 2 * kv_width()) + 4 * config_.hidden_size + 8;
  memory.activation_bytes = max_pass_tokens * token_bytes +
                            std::min(max_pass_tokens, mlp_tokens_) * 2 * config_.intermediate_size * element_bytes;
  if (ctx_.device == DeviceType::kCuda) memory.op_bytes = LinearBytes(max_pass_tokens);
  return memory;
}

std::int64_t LlamaStage::LinearBytes(std::int64_t max_pass_tokens) const {
  std::int64_t panel_bytes = 0;
  std::int64_t scratch_bytes = 0;
  const auto count = [&](const WeightView& w, std::int64_t tokens, DType y) {
    cuda::LinearShape shape;
    shape.tokens = tokens;
    shape.n = w.rows();
    shape.k = w.cols();
    shape.x = dtype_;
    shape.y = y;
    shape.w_is_quantized = w.is_quantized;
    shape.w = w.dense.dtype;
    panel_bytes = std::max(panel_bytes, cuda::LinearPanelBytes(shape));
    scratch_bytes = std::max(scratch_bytes, cuda::LinearScratchBytes(shape));
  };
  const std::int64_t mlp_tokens = std::min(max_pass_tokens, mlp_tokens_);
  for (const Layer& layer : layers_) {
    for (const WeightView* w : {&layer.q, &layer.k, &layer.v}) count(*w, max_pass_tokens, dtype_);
    for (const WeightView* w : {&layer.gate, &layer.up}) count(*w, mlp_tokens, dtype_);
    count(layer.o, max_pass_tokens, DType::kF32);
    count(layer.down, mlp_tokens, DType::kF32);
  }
  return cuda::kBlasWorkspaceBytes + panel_bytes + scratch_bytes;
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
  if (first_layer_ > 0) return absl::OkStatus();
  // A GPU's memory is not read by the host, so the op could not tell.
  for (std::int64_t i = 0; i < num_tokens; ++i) {
    if (pass.tokens[i] < 0 || pass.tokens[i] >= config_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, ": token ", i, " is ", pass.tokens[i],
                                                     ", outside the vocabulary of ", config_.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status LlamaStage::Grow(DeviceMemory* buffer, std::int64_t num_bytes) {
  if (buffer->size_bytes() >= num_bytes) return absl::OkStatus();
  // What was enqueued may use the old one, which the next who asks for memory gets.
  QST_RETURN_IF_ERROR(Synchronize(ctx_));
  *buffer = DeviceMemory();
  QST_ASSIGN_OR_RETURN(*buffer, DeviceMemory::Allocate(ctx_, num_bytes));
  return absl::OkStatus();
}

absl::StatusOr<MatrixView> LlamaStage::Reuse(DeviceMemory* buffer, std::int64_t rows, std::int64_t cols) {
  QST_RETURN_IF_ERROR(Grow(buffer, rows * cols * DTypeBytes(dtype_)));
  return MatrixView{buffer->data(), dtype_, rows, cols, cols};
}

MatrixView LlamaStage::CacheRows(DeviceMemory& cache, std::int64_t begin, std::int64_t end) {
  return Rows(MatrixView{cache.data(), dtype_, max_cached_tokens_, kv_width(), kv_width()}, begin, end);
}

absl::StatusOr<LlamaStage::Indices> LlamaStage::UploadIndices(const TokenPass& pass) {
  // One piece, so one copy: tokens, positions, offsets of queries and keys.
  host_indices_.assign(pass.tokens.begin(), pass.tokens.end());
  for (std::int64_t s = 0; s < pass.num_sequences(); ++s) {
    for (std::int32_t i = pass.offsets[s]; i < pass.offsets[s + 1]; ++i) {
      host_indices_.push_back(pass.past_tokens + i - pass.offsets[s]);
    }
  }
  host_indices_.insert(host_indices_.end(), pass.offsets.begin(), pass.offsets.end());
  host_indices_.push_back(0);
  host_indices_.push_back(pass.past_tokens + static_cast<std::int32_t>(pass.num_tokens()));

  const std::int64_t num_bytes = static_cast<std::int64_t>(host_indices_.size()) * 4;
  QST_RETURN_IF_ERROR(Grow(&indices_, num_bytes));
  QST_RETURN_IF_ERROR(qst::Upload(ctx_, host_indices_.data(), num_bytes, indices_.data()));
  Indices indices;
  indices.tokens = indices_.as<std::int32_t>();
  indices.positions = indices.tokens + pass.num_tokens();
  indices.queries = {indices.positions + pass.num_tokens(), pass.num_sequences()};
  indices.keys =
      pass.uses_kv_cache ? SequenceOffsets{indices.queries.offsets + pass.offsets.size(), 1} : indices.queries;
  return indices;
}

absl::Status LlamaStage::Forward(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink) {
  QST_RETURN_IF_ERROR(CheckPass(pass, residual));
  const bool has_few_tokens = pass.num_tokens() > 0 && pass.num_tokens() <= cuda::kMaxFewTokens;
  if (ctx_.device == DeviceType::kCuda && has_few_tokens && !pass.uses_kv_cache) {
    return ForwardInCompany(pass, residual, sink);
  }
  return ForwardTokens(pass, residual, sink);
}

// A GPU multiplies few tokens with a weight in another way than many, which is quicker and gives other last bits. That
// is good for generation; else a token's values would depend on how many others are in the pass.
absl::Status LlamaStage::ForwardInCompany(const TokenPass& pass, const MatrixView& residual,
                                          const HiddenStateSink& sink) {
  const std::int64_t num_tokens = pass.num_tokens();
  TokenPass larger = pass;
  larger.tokens.resize(cuda::kMaxFewTokens + 1, 0);
  larger.offsets.push_back(static_cast<std::int32_t>(larger.num_tokens()));
  const std::int64_t row_bytes = config_.hidden_size * 4;
  QST_RETURN_IF_ERROR(Grow(&company_, larger.num_tokens() * row_bytes));
  const MatrixView all = Matrix(company_.as<float>(), larger.num_tokens(), config_.hidden_size);
  QST_RETURN_IF_ERROR(FillZero(ctx_, company_.data(), larger.num_tokens() * row_bytes));
  QST_RETURN_IF_ERROR(AddInto(ctx_, residual, Rows(all, 0, num_tokens), /*accumulate=*/false));
  QST_RETURN_IF_ERROR(ForwardTokens(larger, all, [&](std::int64_t layer, const ConstMatrixView& states) {
    return sink(layer, Rows(states, 0, num_tokens));
  }));
  return AddInto(ctx_, Rows(all, 0, num_tokens), residual, /*accumulate=*/false);
}

absl::Status LlamaStage::ForwardTokens(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink) {
  QST_ASSIGN_OR_RETURN(const Indices indices, UploadIndices(pass));
  if (first_layer_ == 0) {
    QST_RETURN_IF_ERROR(
        EmbeddingLookup(ctx_, indices.tokens, pass.num_tokens(), embedding_, nullptr, ConstMatrixView(), residual));
    QST_RETURN_IF_ERROR(sink(0, residual));
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const std::int64_t layer = first_layer_ + static_cast<std::int64_t>(i);
    absl::Status status = ForwardLayer(pass, indices, layers_[i], residual);
    if (!status.ok()) return Annotate(status, absl::StrCat("pass ", pass.id, ", layer ", layer));
    QST_RETURN_IF_ERROR(sink(layer + 1, residual));
  }
  return absl::OkStatus();
}

absl::Status LlamaStage::ForwardLayer(const TokenPass& pass, const Indices& indices, Layer& layer,
                                      const MatrixView& residual) {
  QST_RETURN_IF_ERROR(ForwardAttention(pass, indices, layer, residual));
  for (std::int64_t begin = 0; begin < residual.rows; begin += mlp_tokens_) {
    QST_RETURN_IF_ERROR(ForwardMlp(layer, Rows(residual, begin, std::min(begin + mlp_tokens_, residual.rows))));
  }
  return absl::OkStatus();
}

absl::Status LlamaStage::ForwardAttention(const TokenPass& pass, const Indices& indices, Layer& layer,
                                          const MatrixView& residual) {
  const std::int64_t num_tokens = residual.rows;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  QST_ASSIGN_OR_RETURN(const MatrixView normed, Reuse(&normed_, num_tokens, config_.hidden_size));
  QST_ASSIGN_OR_RETURN(const MatrixView q, Reuse(&queries_, num_tokens, q_width()));
  QST_ASSIGN_OR_RETURN(const MatrixView attended, Reuse(&attended_, num_tokens, q_width()));
  // Of this pass's tokens, and of all that its queries see.
  MatrixView k, v, all_k, all_v;
  if (pass.uses_kv_cache) {
    const std::int64_t cache_bytes = max_cached_tokens_ * kv_width() * DTypeBytes(dtype_);
    QST_RETURN_IF_ERROR(Grow(&layer.cached_keys, cache_bytes));
    QST_RETURN_IF_ERROR(Grow(&layer.cached_values, cache_bytes));
    const std::int64_t num_keys = pass.past_tokens + num_tokens;
    k = CacheRows(layer.cached_keys, pass.past_tokens, num_keys);
    v = CacheRows(layer.cached_values, pass.past_tokens, num_keys);
    all_k = CacheRows(layer.cached_keys, 0, num_keys);
    all_v = CacheRows(layer.cached_values, 0, num_keys);
  } else {
    QST_ASSIGN_OR_RETURN(k, Reuse(&keys_, num_tokens, kv_width()));
    QST_ASSIGN_OR_RETURN(v, Reuse(&values_, num_tokens, kv_width()));
    all_k = k;
    all_v = v;
  }

  QST_RETURN_IF_ERROR(RmsNorm(ctx_, residual, layer.input_norm, eps, normed, /*inv_rms=*/nullptr));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, layer.q, layer.q_bias, q, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, layer.k, layer.k_bias, k, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, layer.v, layer.v_bias, v, /*accumulate=*/false));
  const float* const inv_freq = inv_freq_.row<float>(0);
  QST_RETURN_IF_ERROR(Rotary(ctx_, q, config_.num_heads, indices.positions, inv_freq, /*inverse=*/false));
  QST_RETURN_IF_ERROR(Rotary(ctx_, k, config_.num_kv_heads, indices.positions, inv_freq, /*inverse=*/false));

  AttentionShape shape;
  shape.num_heads = config_.num_heads;
  shape.num_kv_heads = config_.num_kv_heads;
  shape.head_dim = config_.head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  QST_RETURN_IF_ERROR(Attention(ctx_, shape, q, all_k, all_v, indices.queries, indices.keys, attended,
                                /*log_sum_exp=*/nullptr));
  return Linear(ctx_, attended, layer.o, layer.o_bias, residual, /*accumulate=*/true);
}

absl::Status LlamaStage::ForwardMlp(const Layer& layer, const MatrixView& residual) {
  const std::int64_t ff = config_.intermediate_size;
  QST_ASSIGN_OR_RETURN(const MatrixView normed, Reuse(&normed_, residual.rows, config_.hidden_size));
  QST_ASSIGN_OR_RETURN(const MatrixView gate, Reuse(&gate_, residual.rows, ff));
  QST_ASSIGN_OR_RETURN(const MatrixView up, Reuse(&up_, residual.rows, ff));
  QST_RETURN_IF_ERROR(RmsNorm(ctx_, residual, layer.post_attention_norm, static_cast<float>(config_.rms_norm_eps),
                              normed, /*inv_rms=*/nullptr));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, layer.gate, layer.gate_bias, gate, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, layer.up, layer.up_bias, up, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(SwiGlu(ctx_, gate, up, gate));
  return Linear(ctx_, gate, layer.down, layer.down_bias, residual, /*accumulate=*/true);
}

}  // namespace qst
