// Times one training step of the side network on made-up hidden states, part by part, with the shapes of
// SmolLM2-135M: on CPU processor time of all threads, which a busy machine changes little, on CUDA the time until the
// device has done the part; and the best wall time of a step.
// Usage: side_network_bench [tokens [threads [share of target tokens [cpu | cuda]]]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/side/random.h"
#include "worker/side/side_network.h"

namespace qst {
namespace {

double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// When everything enqueued is done.
double Seconds(const OpContext& ctx) {
  QST_CHECK(Synchronize(ctx).ok());
  return ctx.device == DeviceType::kCuda ? WallSeconds() : static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

std::vector<std::uint16_t> RandomBf16(std::int64_t num, const char* name, float bound) {
  Random random(1, name);
  std::vector<std::uint16_t> out(num);
  for (std::uint16_t& value : out) value = F32ToBF16(random.Symmetric(bound));
  return out;
}

// On the context's device.
template <typename T>
DeviceMemory Copy(const OpContext& ctx, const std::vector<T>& values) {
  auto memory = DeviceMemory::CopyOf(ctx, values.data(), static_cast<std::int64_t>(values.size() * sizeof(T)));
  QST_CHECK(memory.ok());
  return *std::move(memory);
}

void Run(const OpContext& ctx, v1::TaskType task, v1::SidePreset preset, int num_tokens, double target_share) {
  BackboneDims dims;
  dims.num_layers = 30;
  dims.hidden_size = 576;
  dims.intermediate_size = 1536;
  dims.num_heads = 9;
  dims.num_kv_heads = 3;
  dims.vocab_size = 49152;
  dims.rope_theta = 100000.0;
  v1::SideConfig side;
  side.set_preset(preset);
  const auto config = ResolveSideConfig(side, task, {"a", "b", "c", "d", "e", "f", "g", "h"}, dims);
  QST_CHECK(config.ok());
  const DeviceMemory norm = Copy(ctx, std::vector<float>(static_cast<std::size_t>(dims.hidden_size), 1.0f));
  const DeviceMemory head = Copy(ctx, RandomBf16(dims.vocab_size * dims.hidden_size, "head", 0.1f));
  const DeviceMemory hidden =
      Copy(ctx, RandomBf16(static_cast<std::int64_t>(num_tokens) * dims.hidden_size, "hidden", 1.0f));
  FrozenHead frozen;
  frozen.final_norm = Matrix(norm.as<float>(), 1, dims.hidden_size);
  if (!config->is_classification()) {
    frozen.lm_head = WeightView::Dense(
        ConstMatrixView(head.data(), DType::kBF16, dims.vocab_size, dims.hidden_size, dims.hidden_size));
  }
  auto network = SideNetwork::Create(ctx, *config, frozen, 1);
  QST_CHECK(network.ok());
  const HiddenStateSource source = [&](std::int64_t) -> absl::StatusOr<ConstMatrixView> {
    return ConstMatrixView(hidden.data(), DType::kBF16, num_tokens, dims.hidden_size, dims.hidden_size);
  };
  SideBatch batch;
  constexpr int kSequence = 128;
  batch.offsets.push_back(0);
  while (batch.offsets.back() < num_tokens) {
    batch.offsets.push_back(std::min(batch.offsets.back() + kSequence, num_tokens));
  }
  if (config->is_classification()) {
    for (std::size_t s = 1; s < batch.offsets.size(); ++s) {
      batch.rows.push_back(batch.offsets[s] - 1);
      batch.targets.push_back(static_cast<int>(s) % 8);
    }
  } else {
    const int every = static_cast<int>(1.0 / target_share);
    for (int row = 0; row < num_tokens; row += every) {
      batch.rows.push_back(row);
      batch.targets.push_back(row * 7 % 49152);
    }
  }
  SideBatch no_targets = batch;
  no_targets.rows.clear();
  no_targets.targets.clear();
  Parameters& parameters = (*network)->parameters();
  double best_step = 1e9;
  double best_wall = 1e9;
  double best_forward = 1e9;
  double best_layers = 1e9;
  double best_optimizer = 1e9;
  const auto time = [&](const std::function<absl::Status()>& part, double* best) {
    const double start = Seconds(ctx);
    QST_CHECK(part().ok());
    *best = std::min(*best, Seconds(ctx) - start);
  };
  for (int i = 0; i < 4; ++i) {
    const double wall_start = WallSeconds();
    time([&] { return (*network)->AccumulateGradients(batch, source, 1e-3f); }, &best_step);
    best_wall = std::min(best_wall, WallSeconds() - wall_start);
    time([&] { return (*network)->Evaluate(batch, source); }, &best_forward);
    time([&] { return (*network)->Evaluate(no_targets, source); }, &best_layers);
    AdamWParams adam;
    adam.learning_rate = 1e-9f;
    time(
        [&] {
          return AdamW(ctx, adam, parameters.size(), parameters.data(ParameterBuffer::kValues),
                       parameters.data(ParameterBuffer::kGradients), parameters.data(ParameterBuffer::kExpAvg),
                       parameters.data(ParameterBuffer::kExpAvgSq));
        },
        &best_optimizer);
  }
  std::printf("%-14s %-7s %5d tokens %4zu targets: forward %.3f s (layers %.3f, head %.3f), "
              "forward and backward %.3f s (wall %.3f), optimizer %.4f s, %lld parameters, arena %.1f MiB\n",
              v1::TaskType_Name(task).c_str() + 10, v1::SidePreset_Name(preset).c_str() + 12, num_tokens,
              batch.rows.size(), best_forward, best_layers, best_forward - best_layers, best_step, best_wall,
              best_optimizer,
              static_cast<long long>(parameters.num_trainable()), (*network)->arena_bytes() / 1048576.0);
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  const int num_tokens = argc > 1 ? std::atoi(argv[1]) : 2048;
  const int num_threads = argc > 2 ? std::atoi(argv[2]) : 2;
  const double share = argc > 3 ? std::atof(argv[3]) : 0.25;
  qst::ThreadPool threads(num_threads);
  qst::OpContext ctx;
  ctx.threads = &threads;
  ctx.isa = *qst::ResolveIsa(qst::CpuIsa::kAuto);
  std::unique_ptr<qst::cuda::Device> device;
  qst::cuda::StreamPtr stream;
  if (argc > 4 && std::string(argv[4]) == "cuda") {
    auto opened = qst::cuda::Device::Open(qst::cuda::DeviceOptions());
    if (!opened.ok()) {
      std::fprintf(stderr, "%s\n", opened.status().ToString().c_str());
      return 1;
    }
    device = *std::move(opened);
    auto made = device->NewStream();
    QST_CHECK(made.ok());
    stream = *std::move(made);
    ctx.device = qst::DeviceType::kCuda;
    ctx.stream = stream.get();
    std::printf("%s\n", device->name().c_str());
  }
  qst::Run(ctx, qst::v1::TASK_TYPE_CLASSIFICATION, qst::v1::SIDE_PRESET_PROBE, num_tokens, share);
  qst::Run(ctx, qst::v1::TASK_TYPE_CLASSIFICATION, qst::v1::SIDE_PRESET_TUNED, num_tokens, share);
  qst::Run(ctx, qst::v1::TASK_TYPE_CAUSAL_LM, qst::v1::SIDE_PRESET_TUNED, num_tokens, share);
  return 0;
}
