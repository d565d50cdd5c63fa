#include "worker/host_generate_part.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/host_data_config.h"
#include "worker/host_frozen.h"
#include "worker/host_link.h"
#include "worker/infer/generator.h"
#include "worker/infer/next_state.h"
#include "worker/infer/side_next_state.h"
#include "worker/infer/text_stream.h"
#include "worker/side/side_memory.h"
#include "worker/stream/live_stream.h"
#include "worker/text/prompt_template.h"
#include "worker/text/tokenizer.h"
#include "worker/train/results.h"
#include "worker/worker_memory.h"

namespace qst {
namespace {

constexpr absl::Duration kGoodbyeTimeout = absl::Seconds(5);

class GeneratePart : public Part {
 public:
  GeneratePart(const v1::HostPart& command, const PartContext& context)
      : plan_(command.plan()),
        work_(command.generate()),
        context_(context),
        id_(HostedPartOf(command)),
        key_(absl::StrCat(id_.plan_id(), " generator")),
        link_(command.plan(), RankOf(command.plan(), command), context) {}

  ~GeneratePart() override { ReleaseMemory(); }

  void Abort(const absl::Status& reason) override {
    is_released_ = true;
    link_.Abort(reason);
  }
  void Cancel() override { link_.Abort(absl::CancelledError("the generation was cancelled")); }

  void Run() override {
    ReportPart(v1::PART_STATE_LOADING);
    const absl::Status status = Execute();
    ReleaseMemory();
    if (is_released_) return;
    if (!status.ok()) {
      spdlog::error("generation {}: {}", id_.job_id(), status.ToString());
      link_.Abort(status);
      v1::GenerateReport report;
      report.set_job_id(id_.job_id());
      report.set_code(static_cast<std::int32_t>(status.code()));
      report.set_message(std::string(status.message()));
      context_.reports->AddGenerate(report);
    }
    ReportPart(v1::PART_STATE_RELEASED);
  }

 private:
  // The prompt as tokens; the tokens that end an answer in `stop_ids`.
  absl::StatusOr<std::vector<std::int32_t>> EncodePrompt(const Tokenizer& tokenizer,
                                                         std::vector<std::int32_t>* stop_ids) const {
    const v1::GenerateRequest& request = work_.request();
    *stop_ids = tokenizer.stop_ids();
    if (work_.data().template_().empty()) {
      QST_ASSIGN_OR_RETURN(std::vector<std::int32_t> tokens, tokenizer.Encode(request.prompt(), /*add_special=*/true));
      if (tokens.empty() && tokenizer.bos_id().has_value()) tokens.push_back(*tokenizer.bos_id());
      return tokens;
    }
    const absl::StatusOr<PromptFormat> format = PromptFormatFor(work_.data(), tokenizer, DataKind::kInstruction);
    QST_RETURN_IF_ERROR(format.status());
    const std::optional<std::int32_t> end = tokenizer.TokenToId(PromptEndMarker(*format));
    if (end.has_value()) stop_ids->push_back(*end);
    QST_ASSIGN_OR_RETURN(EncodedPrompt prompt,
                         EncodeSegments(RenderPrompt(*format, {{"user", request.prompt()}}), tokenizer));
    return std::move(prompt.tokens);
  }

  absl::Status Execute() {
    const v1::GenerateRequest& request = work_.request();
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, StoredModel::Open(plan_.model_path()));
    const ModelConfig& config = model->config();
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::FromModelFolder(plan_.model_path()));
    GenerateOptions options;
    options.max_new_tokens = request.max_new_tokens();
    options.temperature = request.temperature();
    options.seed = request.seed();
    options.max_tokens = std::min<std::int64_t>(config.max_position_embeddings, plan_.max_sequence_tokens());
    QST_ASSIGN_OR_RETURN(const std::vector<std::int32_t> prompt, EncodePrompt(*tokenizer, &options.stop_ids));

    std::optional<SideNetworkConfig> side;
    if (!work_.side_network_path().empty()) {
      QST_ASSIGN_OR_RETURN(side, LoadSideConfig(work_.side_network_path()));
    }
    QST_RETURN_IF_ERROR(ReserveMemory(*model, side, options.max_tokens));
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<FrozenWeights> frozen,
                         FrozenWeights::Load(context_.ops, *model, /*needs_lm_head=*/true));
    std::unique_ptr<SideNetwork> network;
    std::unique_ptr<NextState> next_state = std::make_unique<BackboneNextState>(frozen->head(), config.num_layers);
    if (side.has_value()) {
      QST_ASSIGN_OR_RETURN(network,
                           LoadSideNetwork(context_.ops, work_.side_network_path(), DimsOf(config), frozen->head()));
      QST_ASSIGN_OR_RETURN(next_state, SideNextState::Create(context_.ops, network.get(), options.max_tokens));
    }
    context_.memory->Set(key_, model->HeadBytes() + ReadProcessMemory().resident_bytes);

    QST_ASSIGN_OR_RETURN(Transport * transport, link_.Connect());
    ReportPart(v1::PART_STATE_READY);
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<LiveStream> stream,
                         LiveStream::Create(*transport, StreamOptions(config)));

    Generator generator(stream.get(), next_state.get(), frozen->head().lm_head, context_.ops);
    TextStream text(tokenizer.get(), prompt);
    v1::GenerateReport report;
    report.set_job_id(id_.job_id());
    QST_ASSIGN_OR_RETURN(const std::string reason, generator.Run(prompt, options, [&](std::int32_t token) {
      report.mutable_response()->add_token_ids(token);
      report.mutable_response()->set_text(text.Add(token));
      // Tokens that complete no character wait for the one that does.
      if (!report.response().text().empty()) {
        context_.reports->AddGenerate(report);
        report.clear_response();
      }
      return absl::OkStatus();
    }));
    QST_RETURN_IF_ERROR(stream->Finish());
    const absl::Status closed = link_.Close(kGoodbyeTimeout, "");
    if (!closed.ok()) spdlog::warn("generation {}: {}", id_.job_id(), std::string(closed.message()));
    report.mutable_response()->set_text(text.Finish());
    report.mutable_response()->set_finish_reason(reason);
    context_.reports->AddGenerate(report);
    return absl::OkStatus();
  }

  LiveStreamOptions StreamOptions(const ModelConfig& config) const {
    LiveStreamOptions options;
    for (const v1::PlacedStage& stage : plan_.stages()) {
      options.stages.push_back({stage.first_layer(), stage.num_layers()});
    }
    options.hidden_size = config.hidden_size;
    options.wire_dtype = WireDtypeOf(plan_);
    options.ctx = context_.ops;
    options.max_passes_in_flight = plan_.max_passes_in_flight();
    options.max_pass_tokens = MaxPassTokens(plan_);
    return options;
  }

  // Of a GPU: the head, the logits, the side network if there is one, and the states of one pass.
  absl::Status ReserveMemory(const StoredModel& model, const std::optional<SideNetworkConfig>& side,
                             std::int64_t max_tokens) {
    if (!context_.device->is_cuda()) return absl::OkStatus();
    const ModelConfig& config = model.config();
    std::int64_t network = (config.hidden_size + config.vocab_size) * static_cast<std::int64_t>(sizeof(float));
    std::int64_t first_layer = config.num_layers;
    if (side.has_value()) {
      const SideMemory memory = EstimateSideMemory(*side, context_.ops.device, /*num_tokens=*/0);
      network += memory.parameter_bytes + memory.optimizer_bytes +
                 SideNextState::EstimateBytes(*side, context_.ops.device, max_tokens);
      first_layer = side->first_layer();
    }
    const std::int64_t states = LiveStream::StateBytes(StreamOptions(config), first_layer, config.num_layers);
    return context_.device->Reserve(
        key_, network + model.HeadBytes() + states + kContextBytes,
        absl::StrCat("generator: side network, its keys and values, and activations ",
                     FormatBytes(network + kContextBytes), ", LM head ", FormatBytes(model.HeadBytes()),
                     ", hidden states on their way ", FormatBytes(states)));
  }

  void ReleaseMemory() {
    context_.memory->Remove(key_);
    context_.device->Unreserve(key_);
  }

  void ReportPart(v1::PartState state) {
    v1::PartReport report;
    *report.mutable_part() = id_;
    report.set_state(state);
    context_.reports->AddPart(report);
  }

  const v1::JobPlan plan_;
  const v1::GenerateWork work_;
  const PartContext context_;
  const v1::HostedPart id_;
  const std::string key_;
  PartLink link_;
  std::atomic<bool> is_released_{false};
};

}  // namespace

std::unique_ptr<Part> MakeGeneratePart(const v1::HostPart& command, const PartContext& context) {
  return std::make_unique<GeneratePart>(command, context);
}

}  // namespace qst
