#include "tests/bench/model_bench.h"

#include <algorithm>
#include <iostream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"
#include "tests/bench/cuda_timing.h"
#include "tests/bench/device_matrix.h"
#include "worker/host_frozen.h"
#include "worker/side/side_config.h"
#include "worker/stream/inproc_transport.h"
#include "worker/stream/live_stream.h"
#include "worker/stream/stage_runner.h"

namespace qst {
namespace {

constexpr std::int64_t kPassesInFlight = 2;

// Of linear layers and causal attention, forward.
double FlopsPerToken(const ModelConfig& config, std::int64_t length) {
  double weights = 0.0;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    if (tensor.kind == ModelTensor::Kind::kLinear) weights += static_cast<double>(tensor.num_elems());
  }
  const double attention = 2.0 * static_cast<double>(config.num_layers * config.q_size()) * static_cast<double>(length);
  return 2.0 * weights + attention;
}

TokenPass MakePass(std::uint64_t id, const BenchSetting& setting, std::int64_t vocab_size) {
  TokenPass pass;
  pass.id = id;
  for (std::int64_t i = 0; i < setting.pass_sequences * setting.length; ++i) {
    pass.tokens.push_back(static_cast<std::int32_t>((i * 7919 + static_cast<std::int64_t>(id)) % vocab_size));
  }
  for (std::int64_t s = 0; s <= setting.pass_sequences; ++s) {
    pass.offsets.push_back(static_cast<std::int32_t>(s * setting.length));
  }
  return pass;
}

// The second half of each sequence is to be predicted.
SideBatch MakeBatch(const BenchSetting& setting, std::int64_t vocab_size) {
  SideBatch batch;
  batch.offsets = {0};
  for (std::int64_t s = 0; s < setting.micro_sequences; ++s) {
    const std::int64_t begin = s * setting.length;
    batch.offsets.push_back(static_cast<std::int32_t>(begin + setting.length));
    for (std::int64_t row = setting.length / 2; row + 1 < setting.length; ++row) {
      batch.rows.push_back(static_cast<std::int32_t>(begin + row));
      batch.targets.push_back(static_cast<std::int32_t>(row * 31 % vocab_size));
    }
  }
  return batch;
}

double ReplayedShare(const GraphStats& stats) {
  const std::int64_t all = stats.num_plain + stats.num_captured + stats.num_replayed;
  return static_cast<double>(stats.num_replayed) / static_cast<double>(std::max<std::int64_t>(1, all));
}

OpContext ContextOf(const cuda::StreamPtr& stream) {
  OpContext ctx;
  ctx.device = DeviceType::kCuda;
  ctx.stream = stream.get();
  return ctx;
}

cuda::StreamOptions SideOptions(bool allow_tf32) {
  cuda::StreamOptions options;
  options.allow_tf32 = allow_tf32;
  return options;
}

}  // namespace

void ModelBench::Print(const std::string& name, const BenchSetting& setting, double value, const char* unit,
                       double ratio) const {
  const std::string what =
      absl::StrCat(shape_, ", NF4 double-quantized, ", setting.num_sequences, "x", setting.length, " tokens a step, ",
                   setting.pass_sequences, "x a pass, ", setting.micro_sequences, "x a micro-batch");
  std::cout << JsonLine(name, what, value, unit, ratio) << std::endl;
}

absl::Status ModelBench::Run(const BenchSetting& setting, const BenchParts& parts) {
  QST_ASSIGN_OR_RETURN(device_, cuda::Device::Open(cuda::DeviceOptions()));
  const absl::Status status = RunOnDevice(setting, parts);
  device_.reset();
  return status;
}

absl::Status ModelBench::RunOnDevice(const BenchSetting& setting, const BenchParts& parts) {
  double forward = 0.0;
  if (parts.side) {
    QST_ASSIGN_OR_RETURN(const double side, SideRate(setting));
    Print("side network alone, r = 16", setting, side, "tokens/s", -1.0);
  }
  if (!parts.forward && !parts.training) return absl::OkStatus();
  device_->ResetPeak();
  const ModelConfig& config = model_->config();
  QST_ASSIGN_OR_RETURN(const cuda::StreamPtr stream, device_->NewStream());
  const OpContext ctx = ContextOf(stream);
  StageOptions options;
  options.num_layers = config.num_layers;
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<Stage> stage, Stage::Create(*model_, options, ctx));
  if (parts.forward) {
    QST_ASSIGN_OR_RETURN(forward, ForwardRate(setting, *stage, ctx));
    const double flops = forward * FlopsPerToken(config, setting.length);
    Print("backbone forward", setting, forward, "tokens/s", ceiling_ > 0.0 ? flops / (ceiling_ * 1e12) : -1.0);
  }
  return parts.training ? RunTraining(setting, parts, forward, *stage, ctx) : absl::OkStatus();
}

absl::Status ModelBench::RunTraining(const BenchSetting& setting, const BenchParts& parts, double forward, Stage& stage,
                                     const OpContext& stage_ctx) {
  const auto ratio = [&](const Training& training) { return forward > 0.0 ? training.rate / forward : -1.0; };
  QST_ASSIGN_OR_RETURN(const Training training, TrainingRate(setting, Variant(), stage, stage_ctx));
  Print("training, r = 16", setting, training.rate, "tokens/s", ratio(training));
  Print("peak memory, training, r = 16", setting, static_cast<double>(device_->peak_bytes()) / 1e9, "GB", -1.0);
  Print("replayed by graphs", setting, 100.0 * ReplayedShare(training.stats), "%", -1.0);
  if (!parts.variants) return absl::OkStatus();
  Variant plain;
  plain.uses_graphs = false;
  QST_ASSIGN_OR_RETURN(const Training without_graphs, TrainingRate(setting, plain, stage, stage_ctx));
  Print("training, r = 16, without graphs", setting, without_graphs.rate, "tokens/s", ratio(without_graphs));
  Variant exact;
  exact.allow_tf32 = false;
  QST_ASSIGN_OR_RETURN(const Training without_tf32, TrainingRate(setting, exact, stage, stage_ctx));
  Print("training, r = 16, float32 products", setting, without_tf32.rate, "tokens/s", ratio(without_tf32));
  return absl::OkStatus();
}

absl::StatusOr<double> ModelBench::ForwardRate(const BenchSetting& setting, Stage& stage, const OpContext& ctx) {
  const std::int64_t tokens = setting.pass_sequences * setting.length;
  const std::int64_t width = model_->config().hidden_size;
  QST_ASSIGN_OR_RETURN(DeviceMemory residual, DeviceMemory::Allocate(ctx, tokens * width * 4));
  const MatrixView view{residual.data(), DType::kF32, tokens, width, width};
  const HiddenStateSink ignore = [](std::int64_t, const ConstMatrixView&) { return absl::OkStatus(); };
  const std::int64_t num_passes = setting.num_steps * setting.num_sequences / setting.pass_sequences;
  absl::Time start;
  for (std::int64_t i = 0; i <= num_passes; ++i) {
    if (i == 1) {  // the first one warms up
      QST_RETURN_IF_ERROR(Synchronize(ctx));
      start = absl::Now();
    }
    QST_RETURN_IF_ERROR(stage.Forward(MakePass(i, setting, model_->config().vocab_size), view, ignore));
  }
  QST_RETURN_IF_ERROR(Synchronize(ctx));
  return static_cast<double>(tokens * num_passes) / absl::ToDoubleSeconds(absl::Now() - start);
}

absl::StatusOr<std::unique_ptr<SideNetwork>> ModelBench::MakeNetwork(const OpContext& ctx, const FrozenHead& head,
                                                                     const BenchSetting& setting, bool uses_graphs) {
  v1::SideConfig side;
  side.set_preset(v1::SIDE_PRESET_TUNED);
  QST_ASSIGN_OR_RETURN(const SideNetworkConfig resolved,
                       ResolveSideConfig(side, v1::TASK_TYPE_CAUSAL_LM, {}, DimsOf(model_->config())));
  QST_ASSIGN_OR_RETURN(std::unique_ptr<SideNetwork> network, SideNetwork::Create(ctx, resolved, head, /*seed=*/1));
  if (uses_graphs) network->UseGraphs(setting.micro_sequences * setting.length);
  return network;
}

absl::StatusOr<double> ModelBench::SideRate(const BenchSetting& setting) {
  const ModelConfig& config = model_->config();
  QST_ASSIGN_OR_RETURN(const cuda::StreamPtr stream, device_->NewStream(SideOptions(/*allow_tf32=*/true)));
  const OpContext ctx = ContextOf(stream);
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<FrozenWeights> frozen,
                       FrozenWeights::Load(ctx, *model_, /*needs_lm_head=*/true));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<SideNetwork> network, MakeNetwork(ctx, frozen->head(), setting, true));
  // One state stands for those of all layers, but it is larger than the L2 cache in any setting that is timed.
  const std::int64_t micro_tokens = setting.micro_sequences * setting.length;
  QST_ASSIGN_OR_RETURN(const DeviceMatrix states,
                       DeviceMatrix::Create(ctx, micro_tokens, config.hidden_size, DType::kBF16));
  const HiddenStateSource source = [&](std::int64_t) -> absl::StatusOr<ConstMatrixView> { return states.view(); };
  const SideBatch batch = MakeBatch(setting, config.vocab_size);
  QST_ASSIGN_OR_RETURN(DeviceMemory sum, DeviceMemory::Allocate(ctx, sizeof(double)));
  absl::Time start;
  for (int step = 0; step <= setting.num_steps; ++step) {
    // Two of a shape are needed until graphs are replayed.
    if (step == 1) {
      QST_RETURN_IF_ERROR(network->AccumulateGradients(batch, source, 1e-4f));
      QST_RETURN_IF_ERROR(Synchronize(ctx));
      start = absl::Now();
    }
    for (std::int64_t i = 0; i < setting.num_sequences / setting.micro_sequences; ++i) {
      QST_RETURN_IF_ERROR(network->AccumulateGradients(batch, source, 1e-4f));
    }
    QST_RETURN_IF_ERROR(OptimizerStep(ctx, step + 1, network->parameters(), &sum));
  }
  QST_RETURN_IF_ERROR(Synchronize(ctx));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return static_cast<double>(setting.num_sequences * setting.length * setting.num_steps) / seconds;
}

absl::StatusOr<ModelBench::Training> ModelBench::TrainingRate(const BenchSetting& setting, const Variant& variant,
                                                              Stage& stage, const OpContext& stage_ctx) {
  const auto hub = InprocHub::Create({"stage 0", "side network"});
  const std::unique_ptr<Transport> stage_end = hub->Endpoint(0);
  const std::unique_ptr<Transport> side_end = hub->Endpoint(1);
  absl::Status stage_status;
  std::thread runner([&] {
    stage_status = device_->MakeCurrent();
    StageRunnerOptions options;
    options.num_layers = model_->config().num_layers;
    options.max_pass_tokens = setting.pass_sequences * setting.length;
    options.max_passes_in_flight = kPassesInFlight;
    if (stage_status.ok()) stage_status = StageRunner(stage, *stage_end, stage_ctx, options).Run();
    if (!stage_status.ok()) stage_end->Abort(stage_status);
  });
  absl::StatusOr<Training> training = Train(setting, variant, side_end.get());
  if (!training.ok()) side_end->Abort(training.status());
  runner.join();
  if (training.ok()) QST_RETURN_IF_ERROR(stage_status);
  return training;
}

absl::StatusOr<ModelBench::Training> ModelBench::Train(const BenchSetting& setting, const Variant& variant,
                                                       Transport* transport) {
  const ModelConfig& config = model_->config();
  QST_ASSIGN_OR_RETURN(const cuda::StreamPtr side_stream, device_->NewStream(SideOptions(variant.allow_tf32)));
  const OpContext ctx = ContextOf(side_stream);
  LiveStreamOptions options;
  options.stages = {{0, config.num_layers}};
  options.hidden_size = config.hidden_size;
  options.max_passes_in_flight = kPassesInFlight;
  options.max_pass_tokens = setting.pass_sequences * setting.length;
  options.ctx = ctx;
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<LiveStream> stream, LiveStream::Create(*transport, options));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<FrozenWeights> frozen,
                       FrozenWeights::Load(ctx, *model_, /*needs_lm_head=*/true));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<SideNetwork> network,
                       MakeNetwork(ctx, frozen->head(), setting, variant.uses_graphs));
  const SideBatch batch = MakeBatch(setting, config.vocab_size);
  QST_ASSIGN_OR_RETURN(DeviceMemory sum, DeviceMemory::Allocate(ctx, sizeof(double)));

  const std::int64_t micro_tokens = setting.micro_sequences * setting.length;
  const std::int64_t passes_per_step = setting.num_sequences / setting.pass_sequences;
  // Until the pipeline is full and graphs are replayed.
  const std::int64_t num_warm_steps = 2;
  const std::int64_t num_passes = passes_per_step * (num_warm_steps + setting.num_steps);
  absl::Time start;
  for (std::int64_t id = 0; id < num_passes; ++id) {
    for (std::int64_t next = id == 0 ? 0 : id + kPassesInFlight - 1; next < std::min(num_passes, id + kPassesInFlight);
         ++next) {
      QST_RETURN_IF_ERROR(stream->Submit(MakePass(next, setting, config.vocab_size), 0));
    }
    for (std::int64_t i = 0; i < setting.pass_sequences / setting.micro_sequences; ++i) {
      const HiddenStateSource rows = [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
        QST_ASSIGN_OR_RETURN(ConstMatrixView states, stream->Wait(id, layer));
        return Rows(states, i * micro_tokens, (i + 1) * micro_tokens);
      };
      QST_RETURN_IF_ERROR(network->AccumulateGradients(batch, rows, 1e-4f));
    }
    stream->Release(id);
    if ((id + 1) % passes_per_step != 0) continue;
    const std::int64_t step = (id + 1) / passes_per_step;
    QST_RETURN_IF_ERROR(OptimizerStep(ctx, step, network->parameters(), &sum));
    if (step == num_warm_steps) {
      QST_RETURN_IF_ERROR(Synchronize(ctx));
      start = absl::Now();
    }
  }
  QST_RETURN_IF_ERROR(Synchronize(ctx));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  QST_RETURN_IF_ERROR(stream->Finish());
  return Training{static_cast<double>(setting.num_sequences * setting.length * setting.num_steps) / seconds,
                  network->graph_stats()};
}

absl::Status ModelBench::OptimizerStep(const OpContext& ctx, std::int64_t step, Parameters& parameters,
                                       DeviceMemory* sum) {
  const std::int64_t n = parameters.size();
  float* const gradients = parameters.data(ParameterBuffer::kGradients);
  QST_RETURN_IF_ERROR(SumOfSquares(ctx, gradients, n, sum->as<double>()));
  AdamWParams params;
  params.learning_rate = 1e-4f;
  params.step = step;
  params.sum_of_squares = sum->as<double>();
  params.clip_norm = 1.0;
  QST_RETURN_IF_ERROR(AdamW(ctx, params, n, parameters.data(ParameterBuffer::kValues), gradients,
                            parameters.data(ParameterBuffer::kExpAvg), parameters.data(ParameterBuffer::kExpAvgSq)));
  return FillZero(ctx, gradients, n * std::int64_t{sizeof(float)});
}

}  // namespace qst
