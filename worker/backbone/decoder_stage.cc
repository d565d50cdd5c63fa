#include "worker/backbone/decoder_stage.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

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

std::int64_t MlpTokens(const OpContext& ctx, std::int64_t token_elems, DType dtype) {
  if (ctx.device == DeviceType::kCpu) return kMinMlpTokens;
  const std::int64_t budget = cuda::DeviceOf(*ctx.stream).memory_budget_bytes();
  const std::int64_t tokens = std::min(kMaxMlpBytes, budget / kMlpMemoryShare) / (token_elems * DTypeBytes(dtype));
  return std::max(kMinMlpTokens, tokens / kMlpGranularity * kMlpGranularity);
}

}  // namespace

DecoderStage::DecoderStage(const ModelConfig& config, const StageOptions& options, const OpContext& ctx,
                           std::int64_t mlp_buffers)
    : ctx_(ctx),
      config_(config),
      dtype_(ctx.device == DeviceType::kCuda ? options.cuda_dtype : DType::kF32),
      first_layer_(options.first_layer),
      num_layers_(options.num_layers),
      max_cached_tokens_(std::min(options.max_cached_tokens, config.max_position_embeddings)),
      mlp_buffers_(mlp_buffers),
      mlp_tokens_(MlpTokens(ctx, mlp_buffers * config.intermediate_size, dtype_)) {}

DecoderStage::~DecoderStage() { Synchronize(ctx_).IgnoreError(); }

absl::Status DecoderStage::Open(const StoredModel& model) {
  if (first_layer_ == 0) QST_RETURN_IF_ERROR(AddEmbedding(model));
  for (std::int64_t i = 0; i < num_layers_; ++i) QST_RETURN_IF_ERROR(AddLayer(model, i));
  return absl::OkStatus();
}

absl::Status DecoderStage::AddWeight(const StoredModel& model, const std::string& name, std::int64_t rows,
                                     std::int64_t cols, WeightView* view) {
  QST_ASSIGN_OR_RETURN(*view, WeightOfShape(model, name, rows, cols));
  weights_.Add(view);
  return absl::OkStatus();
}

absl::Status DecoderStage::AddVector(const StoredModel& model, const std::string& name, std::int64_t n,
                                     ConstMatrixView* view) {
  QST_ASSIGN_OR_RETURN(std::vector<float> values, VectorOfSize(model, name, n));
  weights_.Add(std::move(values), view);
  return absl::OkStatus();
}

absl::Status DecoderStage::AddTable(const StoredModel& model, const std::string& name, std::int64_t rows,
                                    std::int64_t cols, ConstMatrixView* view) {
  QST_ASSIGN_OR_RETURN(*view, model.Dense(name));
  if (view->rows != rows || view->cols != cols) {
    return absl::DataLossError(absl::StrCat("tensor ", name, " is [", view->rows, ", ", view->cols,
                                            "]; the model's config.json asks for [", rows, ", ", cols, "]"));
  }
  weights_.Add(view);
  return absl::OkStatus();
}

absl::Status DecoderStage::Upload() { return weights_.Upload(ctx_); }

StageMemory DecoderStage::Memory(std::int64_t max_pass_tokens) const {
  const std::int64_t element_bytes = DTypeBytes(dtype_);
  StageMemory memory;
  memory.weight_bytes = ctx_.device == DeviceType::kCuda ? weights_.device_bytes() : weights_.num_bytes();
  memory.cache_bytes = num_layers() * 2 * max_cached_tokens_ * kv_width() * element_bytes;
  // normed, queries, keys, values, attended; the residual stream; tokens and positions. Then the feed-forward part's.
  std::int64_t token_bytes =
      element_bytes * (config_.hidden_size + 2 * q_width() + 2 * kv_width()) + 4 * config_.hidden_size + 8;
  if (first_layer_ == 0) token_bytes += EmbedBytes();
  memory.activation_bytes = max_pass_tokens * token_bytes + std::min(max_pass_tokens, mlp_tokens_) * mlp_buffers_ *
                                                                config_.intermediate_size * element_bytes;
  if (ctx_.device == DeviceType::kCuda) memory.op_bytes = LinearBytes(max_pass_tokens);
  return memory;
}

void DecoderStage::AddUses(const AttentionWeights& weights, std::vector<LinearUse>* uses) const {
  for (const WeightView* w : {&weights.q, &weights.k, &weights.v}) uses->push_back({w, false, false, dtype_});
  uses->push_back({&weights.o, false, true, dtype_});
}

std::int64_t DecoderStage::LinearBytes(std::int64_t max_pass_tokens) const {
  std::int64_t panel_bytes = 0;
  std::int64_t scratch_bytes = 0;
  for (const LinearUse& use : LinearUses()) {
    cuda::LinearShape shape;
    shape.tokens = use.is_mlp ? std::min(max_pass_tokens, mlp_tokens_) : max_pass_tokens;
    shape.n = use.weight->rows();
    shape.k = use.weight->cols();
    shape.x = use.x;
    shape.y = use.is_into_residual ? DType::kF32 : dtype_;
    shape.w_is_quantized = use.weight->is_quantized;
    shape.w = use.weight->dense.dtype;
    panel_bytes = std::max(panel_bytes, cuda::LinearPanelBytes(shape));
    scratch_bytes = std::max(scratch_bytes, cuda::LinearScratchBytes(shape));
  }
  return cuda::kBlasWorkspaceBytes + panel_bytes + scratch_bytes;
}

absl::Status DecoderStage::CheckPass(const TokenPass& pass, const MatrixView& residual) const {
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
      const bool is_dynamic = config_.rope_scaling.type == RopeScalingType::kDynamic;
      return absl::InvalidArgumentError(
          absl::StrCat("pass ", pass.id, ": sequence ", s, " has ", pass.past_tokens + length,
                       " tokens; the model's context is ", config_.max_position_embeddings,
                       is_dynamic ? ", beyond which its dynamic rotary scaling is not supported" : ""));
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

absl::Status DecoderStage::Grow(DeviceMemory* buffer, std::int64_t num_bytes) {
  if (buffer->size_bytes() >= num_bytes) return absl::OkStatus();
  // What was enqueued may use the old one, which the next who asks for memory gets.
  QST_RETURN_IF_ERROR(Synchronize(ctx_));
  *buffer = DeviceMemory();
  QST_ASSIGN_OR_RETURN(*buffer, DeviceMemory::Allocate(ctx_, num_bytes));
  return absl::OkStatus();
}

absl::StatusOr<MatrixView> DecoderStage::Reuse(DeviceMemory* buffer, std::int64_t rows, std::int64_t cols) {
  QST_RETURN_IF_ERROR(Grow(buffer, rows * cols * DTypeBytes(dtype_)));
  return MatrixView{buffer->data(), dtype_, rows, cols, cols};
}

MatrixView DecoderStage::CacheRows(DeviceMemory& cache, std::int64_t begin, std::int64_t end) {
  return Rows(MatrixView{cache.data(), dtype_, max_cached_tokens_, kv_width(), kv_width()}, begin, end);
}

absl::StatusOr<DecoderStage::Indices> DecoderStage::UploadIndices(const TokenPass& pass) {
  // One piece, so one copy: tokens, positions, offsets of queries and keys.
  host_indices_.assign(pass.tokens.begin(), pass.tokens.end());
  const std::int32_t first_position = pass.past_tokens + static_cast<std::int32_t>(position_offset());
  for (std::int64_t s = 0; s < pass.num_sequences(); ++s) {
    for (std::int32_t i = pass.offsets[s]; i < pass.offsets[s + 1]; ++i) {
      host_indices_.push_back(first_position + i - pass.offsets[s]);
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

absl::Status DecoderStage::Forward(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink) {
  QST_RETURN_IF_ERROR(CheckPass(pass, residual));
  const bool has_few_tokens = pass.num_tokens() > 0 && pass.num_tokens() <= cuda::kMaxFewTokens;
  if (ctx_.device == DeviceType::kCuda && has_few_tokens && !pass.uses_kv_cache) {
    return ForwardInCompany(pass, residual, sink);
  }
  return ForwardTokens(pass, residual, sink);
}

// A GPU multiplies few tokens with a weight in another way than many, which is quicker and gives other last bits. That
// is good for generation; else a token's values would depend on how many others are in the pass.
absl::Status DecoderStage::ForwardInCompany(const TokenPass& pass, const MatrixView& residual,
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

absl::Status DecoderStage::ForwardTokens(const TokenPass& pass, const MatrixView& residual,
                                         const HiddenStateSink& sink) {
  QST_ASSIGN_OR_RETURN(const Indices indices, UploadIndices(pass));
  if (first_layer_ == 0) {
    QST_RETURN_IF_ERROR(Embed(indices, residual));
    QST_RETURN_IF_ERROR(sink(0, residual));
  }
  for (std::int64_t i = 0; i < num_layers_; ++i) {
    absl::Status status = ForwardLayer(pass, indices, i, residual);
    if (!status.ok()) return Annotate(status, absl::StrCat("pass ", pass.id, ", layer ", first_layer_ + i));
    QST_RETURN_IF_ERROR(sink(first_layer_ + i + 1, residual));
  }
  return absl::OkStatus();
}

absl::Status DecoderStage::ForEachMlpGroup(const MatrixView& residual,
                                           const std::function<absl::Status(const MatrixView&)>& mlp) {
  for (std::int64_t begin = 0; begin < residual.rows; begin += mlp_tokens_) {
    QST_RETURN_IF_ERROR(mlp(Rows(residual, begin, std::min(begin + mlp_tokens_, residual.rows))));
  }
  return absl::OkStatus();
}

absl::Status DecoderStage::AddAttention(const TokenPass& pass, const Indices& indices, const MatrixView& normed,
                                        AttentionWeights* weights, const MatrixView& residual) {
  const std::int64_t num_tokens = residual.rows;
  QST_ASSIGN_OR_RETURN(const MatrixView q, Reuse(&queries_, num_tokens, q_width()));
  QST_ASSIGN_OR_RETURN(const MatrixView attended, Reuse(&attended_, num_tokens, q_width()));
  // Of this pass's tokens, and of all that its queries see.
  MatrixView k, v, all_k, all_v;
  if (pass.uses_kv_cache) {
    const std::int64_t cache_bytes = max_cached_tokens_ * kv_width() * DTypeBytes(dtype_);
    QST_RETURN_IF_ERROR(Grow(&weights->cached_keys, cache_bytes));
    QST_RETURN_IF_ERROR(Grow(&weights->cached_values, cache_bytes));
    const std::int64_t num_keys = pass.past_tokens + num_tokens;
    k = CacheRows(weights->cached_keys, pass.past_tokens, num_keys);
    v = CacheRows(weights->cached_values, pass.past_tokens, num_keys);
    all_k = CacheRows(weights->cached_keys, 0, num_keys);
    all_v = CacheRows(weights->cached_values, 0, num_keys);
  } else {
    QST_ASSIGN_OR_RETURN(k, Reuse(&keys_, num_tokens, kv_width()));
    QST_ASSIGN_OR_RETURN(v, Reuse(&values_, num_tokens, kv_width()));
    all_k = k;
    all_v = v;
  }
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, weights->q, weights->q_bias, q, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, weights->k, weights->k_bias, k, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Linear(ctx_, normed, weights->v, weights->v_bias, v, /*accumulate=*/false));
  QST_RETURN_IF_ERROR(Rotate(indices, q, k));

  AttentionShape shape;
  shape.num_heads = config_.num_heads;
  shape.num_kv_heads = config_.num_kv_heads;
  shape.head_dim = config_.head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  shape.window = weights->window;
  QST_RETURN_IF_ERROR(Attention(ctx_, shape, q, all_k, all_v, indices.queries, indices.keys, attended,
                                /*log_sum_exp=*/nullptr));
  return Linear(ctx_, attended, weights->o, weights->o_bias, residual, /*accumulate=*/true);
}

}  // namespace qst
