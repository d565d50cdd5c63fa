#include "worker/backbone/stage.h"

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/backbone/decoder_stage.h"
#include "worker/backbone/llama_stage.h"
#include "worker/backbone/opt_stage.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {
namespace {

absl::Status CheckOptions(const ModelConfig& config, const StageOptions& options) {
  if (options.first_layer < 0 || options.num_layers < 1 ||
      options.num_layers > config.num_layers - options.first_layer) {
    return absl::InvalidArgumentError(absl::StrCat("layers [", options.first_layer, ", ",
                                                   options.first_layer + options.num_layers,
                                                   ") do not lie in the model's ", config.num_layers, " layers"));
  }
  if (options.cuda_dtype != DType::kBF16 && options.cuda_dtype != DType::kF16 && options.cuda_dtype != DType::kF32) {
    return absl::InvalidArgumentError(
        absl::StrCat("a stage cannot compute in ", DTypeName(options.cuda_dtype), "; use bf16, f16 or f32"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DecoderStage>> Open(const StoredModel& model, const StageOptions& options,
                                                   const OpContext& ctx) {
  QST_RETURN_IF_ERROR(CheckOptions(model.config(), options));
  std::unique_ptr<DecoderStage> stage;
  switch (model.config().family) {
    case ModelFamily::kLlama:
      stage = std::make_unique<LlamaStage>(model.config(), options, ctx);
      break;
    case ModelFamily::kOpt:
      stage = std::make_unique<OptStage>(model.config(), options, ctx);
      break;
  }
  QST_RETURN_IF_ERROR(stage->Open(model));
  return stage;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(const StoredModel& model, const StageOptions& options,
                                                     const OpContext& ctx) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<DecoderStage> stage, Open(model, options, ctx));
  QST_RETURN_IF_ERROR(stage->Upload());
  return stage;
}

absl::StatusOr<StageMemory> Stage::Estimate(const StoredModel& model, const StageOptions& options, const OpContext& ctx,
                                            std::int64_t max_pass_tokens) {
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderStage> stage, Open(model, options, ctx));
  return stage->Memory(max_pass_tokens);
}

}  // namespace qst
