// Whole models of published shapes on one GPU, with random weights: how fast the frozen backbone runs by itself, how
// fast a side network is trained from it (stage and side network each with a stream, hidden states handed over in
// process, as a worker that hosts both does it), and what memory it takes. Prints lines of JSON:
//
//   backbone forward   value: tokens/s; ratio: FLOP/s of its linear layers and attention by a plain bf16 product
//   training           value: tokens/s; ratio: by the forward rate of the same run. Twice: the side network's work in
//                      CUDA graphs, as jobs have it, and launch by launch
//   replayed           value: share of the side network's units of work that a graph did, in %
//   peak memory        value: GB (1e9) of the device's arena, weights, head and optimizer included
//
//   bazel run --config=cuda //tests/bench:cuda_model_bench -- [--shapes=llama-2-7b,llama-2-70b] [--folder=DIR]
//
// Exit status 1 without a GPU, or in a build without the backend.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "tests/bench/cuda_timing.h"
#include "tests/bench/device_matrix.h"
#include "worker/backbone/stage.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/host_frozen.h"
#include "worker/side/side_config.h"
#include "worker/side/side_network.h"
#include "worker/stream/inproc_transport.h"
#include "worker/stream/live_stream.h"
#include "worker/stream/stage_runner.h"
#include "worker/testing/synthetic_store.h"

ABSL_FLAG(std::vector<std::string>, shapes, std::vector<std::string>({"llama-2-7b", "llama-2-70b"}), "models");
ABSL_FLAG(std::string, folder, "", "where models are made for the time of the run; a new temporary folder if empty");
ABSL_FLAG(std::int64_t, product, 8192, "size of the plain product");

namespace qst {
namespace {

constexpr int kPassesInFlight = 2;

// One measurement: sequences of one length make a pass, which is one optimizer step.
struct Setting {
  std::int64_t num_sequences;
  std::int64_t length;
  int num_passes;
  bool has_speed;
};

std::string Describe(const std::string& shape, const Setting& setting) {
  return absl::StrCat(shape, ", NF4 double-quantized, ", setting.num_sequences, "x", setting.length, " tokens a step");
}

// Of linear layers and causal attention, forward.
double FlopsPerToken(const ModelConfig& config, std::int64_t length) {
  double weights = 0.0;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    if (tensor.kind == ModelTensor::Kind::kLinear) weights += static_cast<double>(tensor.num_elems());
  }
  const double attention = 2.0 * static_cast<double>(config.num_layers * config.q_size()) * static_cast<double>(length);
  return 2.0 * weights + attention;
}

TokenPass MakePass(std::uint64_t id, const Setting& setting, std::int64_t vocab_size) {
  TokenPass pass;
  pass.id = id;
  for (std::int64_t i = 0; i < setting.num_sequences * setting.length; ++i) {
    pass.tokens.push_back(static_cast<std::int32_t>((i * 7919 + static_cast<std::int64_t>(id)) % vocab_size));
  }
  for (std::int64_t s = 0; s <= setting.num_sequences; ++s) {
    pass.offsets.push_back(static_cast<std::int32_t>(s * setting.length));
  }
  return pass;
}

// One sequence; its second half is to be predicted.
SideBatch MakeBatch(const Setting& setting, std::int64_t vocab_size) {
  SideBatch batch;
  batch.offsets = {0, static_cast<std::int32_t>(setting.length)};
  for (std::int64_t row = setting.length / 2; row + 1 < setting.length; ++row) {
    batch.rows.push_back(static_cast<std::int32_t>(row));
    batch.targets.push_back(static_cast<std::int32_t>(row * 31 % vocab_size));
  }
  return batch;
}

class ModelBench {
 public:
  ModelBench(std::string shape, std::unique_ptr<StoredModel> model, double ceiling)
      : shape_(std::move(shape)), model_(std::move(model)), ceiling_(ceiling) {}

  // On a device of its own, so that the peak is this setting's.
  absl::Status Run(const Setting& setting) {
    QST_ASSIGN_OR_RETURN(device_, cuda::Device::Open(cuda::DeviceOptions()));
    QST_ASSIGN_OR_RETURN(stage_stream_, device_->NewStream());
    QST_ASSIGN_OR_RETURN(side_stream_, device_->NewStream());
    const absl::Status status = RunOnDevice(setting);
    stage_stream_.reset();
    side_stream_.reset();
    device_.reset();
    return status;
  }

 private:
  struct Training {
    double rate = 0.0;  // tokens/s
    GraphStats stats;
  };

  static double ReplayedShare(const GraphStats& stats) {
    const std::int64_t all = stats.num_plain + stats.num_captured + stats.num_replayed;
    return static_cast<double>(stats.num_replayed) / static_cast<double>(std::max<std::int64_t>(1, all));
  }

  static OpContext ContextOf(const cuda::StreamPtr& stream) {
    OpContext ctx;
    ctx.device = DeviceType::kCuda;
    ctx.stream = stream.get();
    return ctx;
  }

  absl::Status RunOnDevice(const Setting& setting) {
    const ModelConfig& config = model_->config();
    const OpContext stage_ctx = ContextOf(stage_stream_);
    StageOptions options;
    options.num_layers = config.num_layers;
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<Stage> stage, Stage::Create(*model_, options, stage_ctx));
    double forward = 0.0;
    if (setting.has_speed) {
      QST_ASSIGN_OR_RETURN(forward, ForwardRate(setting, *stage, stage_ctx));
      std::cout << JsonLine("backbone forward", Describe(shape_, setting), forward, "tokens/s",
                            forward * FlopsPerToken(config, setting.length) / (ceiling_ * 1e12))
                << std::endl;
    }
    QST_ASSIGN_OR_RETURN(const Training training, TrainingRate(setting, /*uses_graphs=*/true, *stage, stage_ctx));
    if (setting.has_speed) {
      QST_ASSIGN_OR_RETURN(const Training plain, TrainingRate(setting, /*uses_graphs=*/false, *stage, stage_ctx));
      std::cout << JsonLine("training, r = 16", Describe(shape_, setting), training.rate, "tokens/s",
                            training.rate / forward)
                << std::endl
                << JsonLine("training, r = 16, without graphs", Describe(shape_, setting), plain.rate, "tokens/s",
                            plain.rate / forward)
                << std::endl
                << JsonLine("replayed by graphs", Describe(shape_, setting), 100.0 * ReplayedShare(training.stats), "%",
                            -1.0)
                << std::endl;
    }
    std::cout << JsonLine("peak memory, training, r = 16", Describe(shape_, setting),
                          static_cast<double>(device_->peak_bytes()) / 1e9, "GB", -1.0)
              << std::endl;
    return absl::OkStatus();
  }

  absl::StatusOr<double> ForwardRate(const Setting& setting, Stage& stage, const OpContext& ctx) {
    const std::int64_t tokens = setting.num_sequences * setting.length;
    const std::int64_t width = model_->config().hidden_size;
    QST_ASSIGN_OR_RETURN(DeviceMemory residual, DeviceMemory::Allocate(ctx, tokens * width * 4));
    const MatrixView view{residual.data(), DType::kF32, tokens, width, width};
    const HiddenStateSink ignore = [](std::int64_t, const ConstMatrixView&) { return absl::OkStatus(); };
    absl::Time start;
    for (int i = 0; i <= setting.num_passes; ++i) {
      if (i == 1) {  // the first one warms up
        QST_RETURN_IF_ERROR(Synchronize(ctx));
        start = absl::Now();
      }
      QST_RETURN_IF_ERROR(stage.Forward(MakePass(i, setting, model_->config().vocab_size), view, ignore));
    }
    QST_RETURN_IF_ERROR(Synchronize(ctx));
    return static_cast<double>(tokens * setting.num_passes) / absl::ToDoubleSeconds(absl::Now() - start);
  }

  absl::StatusOr<Training> TrainingRate(const Setting& setting, bool uses_graphs, Stage& stage,
                                        const OpContext& stage_ctx) {
    const ModelConfig& config = model_->config();
    const std::int64_t tokens = setting.num_sequences * setting.length;
    const auto hub = InprocHub::Create({"stage 0", "side network"});
    const std::unique_ptr<Transport> stage_end = hub->Endpoint(0);
    const std::unique_ptr<Transport> side_end = hub->Endpoint(1);
    absl::Status stage_status;
    std::thread runner([&] {
      stage_status = device_->MakeCurrent();
      StageRunnerOptions options;
      options.num_layers = config.num_layers;
      options.max_pass_tokens = tokens;
      options.max_passes_in_flight = kPassesInFlight;
      if (stage_status.ok()) stage_status = StageRunner(stage, *stage_end, stage_ctx, options).Run();
      if (!stage_status.ok()) stage_end->Abort(stage_status);
    });
    absl::StatusOr<Training> training = Train(setting, uses_graphs, side_end.get());
    if (!training.ok()) side_end->Abort(training.status());
    runner.join();
    if (training.ok()) QST_RETURN_IF_ERROR(stage_status);
    return training;
  }

  absl::StatusOr<Training> Train(const Setting& setting, bool uses_graphs, Transport* transport) {
    const ModelConfig& config = model_->config();
    const OpContext ctx = ContextOf(side_stream_);
    const std::int64_t tokens = setting.num_sequences * setting.length;
    LiveStreamOptions options;
    options.stages = {{0, config.num_layers}};
    options.hidden_size = config.hidden_size;
    options.max_passes_in_flight = kPassesInFlight;
    options.max_pass_tokens = tokens;
    options.ctx = ctx;
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<LiveStream> stream, LiveStream::Create(*transport, options));
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<FrozenWeights> frozen,
                         FrozenWeights::Load(ctx, *model_, /*needs_lm_head=*/true));
    v1::SideConfig side;
    side.set_preset(v1::SIDE_PRESET_TUNED);
    QST_ASSIGN_OR_RETURN(const SideNetworkConfig resolved,
                         ResolveSideConfig(side, v1::TASK_TYPE_CAUSAL_LM, {}, DimsOf(config)));
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<SideNetwork> network,
                         SideNetwork::Create(ctx, resolved, frozen->head(), /*seed=*/1));
    if (uses_graphs) network->UseGraphs(setting.length);
    const SideBatch batch = MakeBatch(setting, config.vocab_size);
    QST_ASSIGN_OR_RETURN(DeviceMemory sum, DeviceMemory::Allocate(ctx, sizeof(double)));
    const int num_passes = setting.num_passes + 1;
    absl::Time start;
    for (int id = 0; id < num_passes; ++id) {
      for (int next = id == 0 ? 0 : id + kPassesInFlight - 1; next < std::min(num_passes, id + kPassesInFlight);
           ++next) {
        QST_RETURN_IF_ERROR(stream->Submit(MakePass(next, setting, config.vocab_size), 0));
      }
      for (std::int64_t s = 0; s < setting.num_sequences; ++s) {
        const HiddenStateSource rows = [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
          QST_ASSIGN_OR_RETURN(ConstMatrixView states, stream->Wait(id, layer));
          return Rows(states, s * setting.length, (s + 1) * setting.length);
        };
        QST_RETURN_IF_ERROR(network->AccumulateGradients(batch, rows, 1e-4f));
      }
      QST_RETURN_IF_ERROR(Step(ctx, id + 1, network->parameters(), &sum));
      stream->Release(id);
      if (id == 0) {
        QST_RETURN_IF_ERROR(Synchronize(ctx));
        start = absl::Now();
      }
    }
    QST_RETURN_IF_ERROR(Synchronize(ctx));
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    QST_RETURN_IF_ERROR(stream->Finish());
    return Training{static_cast<double>(tokens * setting.num_passes) / seconds, network->graph_stats()};
  }

  absl::Status Step(const OpContext& ctx, std::int64_t step, Parameters& parameters, DeviceMemory* sum) {
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

  const std::string shape_;
  const std::unique_ptr<StoredModel> model_;
  const double ceiling_;
  std::unique_ptr<cuda::Device> device_;
  cuda::StreamPtr stage_stream_;
  cuda::StreamPtr side_stream_;
};

// TFLOP/s of a plain bf16 product.
absl::StatusOr<double> PlainProduct() {
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<CudaTimer> timer, CudaTimer::Open());
  const OpContext& ctx = timer->context();
  const std::int64_t n = absl::GetFlag(FLAGS_product);
  QST_ASSIGN_OR_RETURN(const DeviceMatrix x, DeviceMatrix::Create(ctx, n, n, DType::kBF16));
  QST_ASSIGN_OR_RETURN(const DeviceMatrix w, DeviceMatrix::Create(ctx, n, n, DType::kBF16));
  QST_ASSIGN_OR_RETURN(const DeviceMatrix y, DeviceMatrix::Create(ctx, n, n, DType::kBF16));
  const WeightView weight = WeightView::Dense(w.view());
  QST_ASSIGN_OR_RETURN(const double milliseconds, timer->Milliseconds([&] {
    return Linear(ctx, x.view(), weight, ConstMatrixView(), y.view(), /*accumulate=*/false);
  }));
  const double speed = 2.0 * std::pow(static_cast<double>(n), 3) / (milliseconds * 1e9);
  std::cout << JsonLine("bf16 product", absl::StrCat(n, " cubed, ", timer->device_name()), speed, "TFLOP/s", 1.0)
            << std::endl;
  return speed;
}

absl::Status RunShape(const std::string& shape, const std::string& folder, double ceiling) {
  QST_ASSIGN_OR_RETURN(const ModelConfig config, PublishedShape(shape));
  const bool is_large = shape == "llama-2-70b";
  const std::string path = absl::StrCat(folder, "/", shape);
  std::filesystem::create_directories(path);
  QST_RETURN_IF_ERROR(WriteSyntheticStore(config, StoreQuantization(),
                                          is_large ? SyntheticWeights::kHoles : SyntheticWeights::kRandom, path));
  std::vector<Setting> settings = {{16, 512, 6, true}, {4, 384, 2, false}};
  if (is_large) settings = {{1, 384, 2, false}, {4, 384, 2, false}};
  if (shape == "tiny") settings = {{3, 40, 2, true}};
  for (const Setting& setting : settings) {
    QST_ASSIGN_OR_RETURN(std::unique_ptr<StoredModel> model, StoredModel::Open(path));
    QST_RETURN_IF_ERROR(ModelBench(shape, std::move(model), ceiling).Run(setting));
  }
  std::filesystem::remove_all(path);
  return absl::OkStatus();
}

absl::Status RunAll() {
  QST_ASSIGN_OR_RETURN(const double ceiling, PlainProduct());
  std::string folder = absl::GetFlag(FLAGS_folder);
  const bool is_temporary = folder.empty();
  if (is_temporary) {
    folder = (std::filesystem::temp_directory_path() / absl::StrCat("qst-model-bench-", ::getpid())).string();
  }
  absl::Status status;
  for (const std::string& shape : absl::GetFlag(FLAGS_shapes)) {
    status = RunShape(shape, folder, ceiling);
    if (!status.ok()) break;
  }
  std::error_code ignored;
  if (is_temporary) std::filesystem::remove_all(folder, ignored);
  return status;
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = qst::RunAll();
  if (status.ok()) return 0;
  std::cerr << "cuda_model_bench: " << status.message() << "\n";
  return 1;
}
