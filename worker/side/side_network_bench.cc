// Times one training step of the side network on made-up hidden states, part by part, with the shapes of
// SmolLM2-135M: processor time of all threads, which a busy machine changes little, and the best wall time of a step.
// Usage: side_network_bench [tokens [threads [share of target tokens]]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/side/random.h"
#include "worker/side/side_network.h"

namespace qst {
namespace {

double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }
double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::uint16_t> RandomBf16(std::int64_t num, const char* name, float bound) {
  Random random(1, name);
  std::vector<std::uint16_t> out(num);
  for (std::uint16_t& value : out) value = F32ToBF16(random.Symmetric(bound));
  return out;
}

void Run(v1::TaskType task, v1::SidePreset preset, int num_tokens, int num_threads, double target_share) {
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
  ThreadPool threads(num_threads);
  OpContext ctx;
  ctx.threads = &threads;
  ctx.isa = *ResolveIsa(CpuIsa::kAuto);

  const std::vector<float> norm(dims.hidden_size, 1.0f);
  const auto head = RandomBf16(dims.vocab_size * dims.hidden_size, "head", 0.1f);
  const auto hidden = RandomBf16(static_cast<std::int64_t>(num_tokens) * dims.hidden_size, "hidden", 1.0f);
  FrozenHead frozen;
  frozen.final_norm = Matrix(norm.data(), 1, dims.hidden_size);
  if (!config->is_classification()) {
    frozen.lm_head = WeightView::Dense(
        ConstMatrixView(head.data(), DType::kBF16, dims.vocab_size, dims.hidden_size, dims.hidden_size));
  }
  auto network = SideNetwork::Create(*config, frozen, 1);
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
  Predictions predictions;
  Parameters& parameters = (*network)->parameters();
  double best_step = 1e9;
  double best_wall = 1e9;
  double best_forward = 1e9;
  double best_layers = 1e9;
  double best_optimizer = 1e9;
  for (int i = 0; i < 4; ++i) {
    const double wall_start = WallSeconds();
    double start = CpuSeconds();
    QST_CHECK((*network)->AccumulateGradients(ctx, batch, source, 1e-3f, &predictions).ok());
    best_step = std::min(best_step, CpuSeconds() - start);
    best_wall = std::min(best_wall, WallSeconds() - wall_start);
    start = CpuSeconds();
    QST_CHECK((*network)->Evaluate(ctx, batch, source, &predictions).ok());
    best_forward = std::min(best_forward, CpuSeconds() - start);
    start = CpuSeconds();
    QST_CHECK((*network)->Evaluate(ctx, no_targets, source, &predictions).ok());
    best_layers = std::min(best_layers, CpuSeconds() - start);
    start = CpuSeconds();
    AdamWParams adam;
    adam.learning_rate = 1e-9f;
    QST_CHECK(AdamW(ctx, adam, parameters.size(), parameters.values(), parameters.gradients(), parameters.exp_avg(),
                    parameters.exp_avg_sq())
                  .ok());
    best_optimizer = std::min(best_optimizer, CpuSeconds() - start);
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
  qst::Run(qst::v1::TASK_TYPE_CLASSIFICATION, qst::v1::SIDE_PRESET_PROBE, num_tokens, num_threads, share);
  qst::Run(qst::v1::TASK_TYPE_CLASSIFICATION, qst::v1::SIDE_PRESET_TUNED, num_tokens, num_threads, share);
  qst::Run(qst::v1::TASK_TYPE_CAUSAL_LM, qst::v1::SIDE_PRESET_TUNED, num_tokens, num_threads, share);
  return 0;
}
