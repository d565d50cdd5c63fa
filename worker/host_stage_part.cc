#include "worker/host_stage_part.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/wire_rows.h"
#include "proto/support/status_macros.h"
#include "worker/backbone/stage.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/host_link.h"
#include "worker/stream/stage_runner.h"
#include "worker/worker_memory.h"

namespace qst {
namespace {

// After the last pass: for the side network to say goodbye.
constexpr absl::Duration kGoodbyeTimeout = absl::Seconds(10);
// States of one layer that are on their way to the side network at a time: one leaves while the next is computed. On
// CPU about so many, on a GPU never more.
constexpr std::int64_t kStatesUnderWay = 2;

class StagePart : public Part {
 public:
  StagePart(const v1::HostPart& command, const PartContext& context)
      : command_(command),
        context_(context),
        id_(HostedPartOf(command)),
        key_(absl::StrCat(id_.plan_id(), " stage ", id_.stage())),
        link_(command.plan(), RankOf(command.plan(), command), context) {}

  ~StagePart() override { ReleaseMemory(); }

  void Abort(const absl::Status& reason) override {
    is_released_ = true;
    link_.Abort(reason);
  }

  void Run() override {
    Report(v1::PART_STATE_LOADING, absl::OkStatus());
    const absl::Status status = Execute();
    ReleaseMemory();
    if (is_released_) return;
    if (status.ok() || IsPeerReported(status)) {
      if (!status.ok())
        spdlog::info("job {}: stage {} ends: {}", id_.job_id(), id_.stage(), std::string(status.message()));
      Report(v1::PART_STATE_RELEASED, absl::OkStatus());
      return;
    }
    spdlog::error("job {}: stage {}: {}", id_.job_id(), id_.stage(), status.ToString());
    // Peers in this process wait for a rank that will never connect.
    link_.Abort(status);
    Report(v1::PART_STATE_FAILED, status);
  }

 private:
  absl::Status Execute() {
    const v1::JobPlan& plan = command_.plan();
    const v1::PlacedStage& placed = plan.stages(static_cast<int>(command_.stage()));
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, StoredModel::Open(plan.model_path()));
    StageOptions stage_options;
    stage_options.first_layer = placed.first_layer();
    stage_options.num_layers = placed.num_layers();
    stage_options.max_cached_tokens = plan.uses_kv_cache() ? plan.max_sequence_tokens() : 0;
    stage_options.cuda_dtype = ComputeDtypeOf(plan);
    const std::int64_t max_tokens = MaxPassTokens(plan);
    QST_ASSIGN_OR_RETURN(const StageMemory memory, Stage::Estimate(*model, stage_options, context_.ops, max_tokens));
    QST_RETURN_IF_ERROR(ReserveMemory(memory, max_tokens, model->config().hidden_size));
    model->Prefetch(placed.first_layer(), placed.num_layers());
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<Stage> stage, Stage::Create(*model, stage_options, context_.ops));
    if (context_.device->is_cuda()) model->Forget(placed.first_layer(), placed.num_layers());
    QST_ASSIGN_OR_RETURN(Transport * transport, link_.Connect());
    spdlog::info("job {}: stage {} is ready: layers {} to {} of {}", id_.job_id(), id_.stage(), placed.first_layer(),
                 placed.first_layer() + placed.num_layers() - 1, model->config().num_layers);
    Report(v1::PART_STATE_READY, absl::OkStatus());

    StageRunnerOptions options;
    options.num_stages = plan.stages_size();
    options.num_layers = model->config().num_layers;
    options.wire_dtype = WireDtypeOf(plan);
    options.max_pass_tokens = max_tokens;
    options.max_passes_in_flight = plan.max_passes_in_flight();
    if (context_.device->is_cuda() && plan.side_worker_id() != context_.worker_id) {
      options.max_states_under_way = kStatesUnderWay;
    }
    StageRunner runner(*stage, *transport, context_.ops, options);
    QST_RETURN_IF_ERROR(runner.Run());

    const StageRunner::Stats& stats = runner.stats();
    const std::string summary = absl::StrFormat(
        "stage %d on %s: %d tokens in %d passes, computing %.2f s, sending %.2f s, waiting %.2f s; %s", id_.stage(),
        context_.worker_id, stats.num_tokens, stats.num_passes, absl::ToDoubleSeconds(stats.compute_time),
        absl::ToDoubleSeconds(stats.send_time), absl::ToDoubleSeconds(stats.waiting_time), DescribeMemory(context_));
    spdlog::info("job {}: {}", id_.job_id(), summary);
    const absl::Status closed = link_.Close(kGoodbyeTimeout, summary);
    if (!closed.ok()) spdlog::warn("job {}: stage {}: {}", id_.job_id(), id_.stage(), std::string(closed.message()));
    return absl::OkStatus();
  }

  // Weights, caches, activations, and the passes that are on their way: residuals come in ahead, states go out.
  absl::Status ReserveMemory(const StageMemory& memory, std::int64_t max_tokens, std::int64_t hidden_size) {
    const v1::JobPlan& plan = command_.plan();
    // The backbone's last state may be wider than the others.
    const DType wire = LayerWireDtype(WireDtypeOf(plan), command_.stage() + 1, plan.stages_size());
    const bool is_alone =
        std::all_of(plan.stages().begin(), plan.stages().end(),
                    [&](const v1::PlacedStage& other) { return other.worker_id() == context_.worker_id; }) &&
        plan.side_worker_id() == context_.worker_id;
    const std::int64_t residuals = plan.max_passes_in_flight() * max_tokens * hidden_size * 4;
    // In one process states belong to the side as soon as they are made, and are in its budget.
    const std::int64_t states = is_alone ? 0 : kStatesUnderWay * WireBytes(wire, max_tokens, hidden_size);
    if (!context_.device->is_cuda()) {
      context_.memory->Set(key_, memory.total_bytes() + residuals + states);
      return absl::OkStatus();
    }
    // The host has the pages of the model's file while they are copied, and what travels through its memory.
    context_.memory->Set(key_, memory.weight_bytes + (is_alone ? 0 : residuals + states));
    return context_.device->Reserve(
        key_, memory.total_bytes() + residuals + states,
        absl::StrCat("stage ", id_.stage(), ": weights ", FormatBytes(memory.weight_bytes), ", KV cache ",
                     FormatBytes(memory.cache_bytes), ", activations ", FormatBytes(memory.activation_bytes),
                     ", matrix products ", FormatBytes(memory.op_bytes), ", passes on their way ",
                     FormatBytes(residuals + states)));
  }

  void ReleaseMemory() {
    context_.memory->Remove(key_);
    context_.device->Unreserve(key_);
  }

  void Report(v1::PartState state, const absl::Status& status) {
    v1::PartReport report;
    *report.mutable_part() = id_;
    report.set_state(state);
    report.set_code(static_cast<std::int32_t>(status.code()));
    report.set_message(std::string(status.message()));
    context_.reports->AddPart(report);
  }

  const v1::HostPart command_;
  const PartContext context_;
  const v1::HostedPart id_;
  const std::string key_;
  PartLink link_;
  std::atomic<bool> is_released_{false};
};

}  // namespace

std::unique_ptr<Part> MakeStagePart(const v1::HostPart& command, const PartContext& context) {
  return std::make_unique<StagePart>(command, context);
}

}  // namespace qst
