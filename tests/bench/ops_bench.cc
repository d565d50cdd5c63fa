// Speed of the ops beside the linear layers, at the shapes of SmolLM2-135M and its side network:
//   bazel run //tests/bench:ops_bench -- --benchmark_filter=Attention
// `items` are pairs of query and visible key for attention, elements for the rest.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace qst {
namespace {

// Values of both signs and no subnormal among them; what they are matters no further.
std::vector<float> Values(std::int64_t n) {
  std::vector<float> values(n);
  std::uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

struct Runner {
  explicit Runner(benchmark::State& state) : pool(1) {
    ctx.threads = &pool;
    if (state.thread_index() != 0) state.SkipWithError("runs on one thread");
  }
  void Check(benchmark::State& state, const absl::Status& status) {
    if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
  }
  ThreadPool pool;
  OpContext ctx;
};

// Sequences of equal length, about 1,024 tokens in all.
struct AttentionOperands {
  AttentionOperands(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t length)
      : shape{heads, kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim))} {
    const std::int64_t num = 1024 / length;
    tokens = num * length;
    for (std::int64_t s = 0; s <= num; ++s) offsets.push_back(static_cast<std::int32_t>(s * length));
    q = Values(tokens * heads * head_dim);
    k = Values(tokens * kv_heads * head_dim);
    v = k;
    out = q;
    log_sum_exp.resize(tokens * heads);
    pairs = num * heads * length * (length + 1) / 2;
  }
  SequenceOffsets View() const {
    return SequenceOffsets{offsets.data(), static_cast<std::int64_t>(offsets.size()) - 1};
  }
  MatrixView Q(std::vector<float>& m) const { return Matrix(m.data(), tokens, shape.num_heads * shape.head_dim); }
  MatrixView K(std::vector<float>& m) const { return Matrix(m.data(), tokens, shape.num_kv_heads * shape.head_dim); }

  AttentionShape shape;
  std::int64_t tokens;
  std::int64_t pairs;
  std::vector<std::int32_t> offsets;
  std::vector<float> q, k, v, out, log_sum_exp;
};

void BM_Attention(benchmark::State& state) {
  Runner runner(state);
  AttentionOperands x(state.range(0), state.range(1), state.range(2), state.range(3));
  for (auto _ : state) {
    runner.Check(state, Attention(runner.ctx, x.shape, x.Q(x.q), x.K(x.k), x.K(x.v), x.View(), x.View(), x.Q(x.out),
                                  x.log_sum_exp.data()));
  }
  state.SetItemsProcessed(state.iterations() * x.pairs);
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * x.pairs * x.shape.head_dim * 4) * 1e-9, benchmark::Counter::kIsRate);
}

void BM_AttentionBackward(benchmark::State& state) {
  Runner runner(state);
  AttentionOperands x(state.range(0), state.range(1), state.range(2), state.range(3));
  std::vector<float> grad_out = x.q;
  std::vector<float> grad_q(x.q.size()), grad_k(x.k.size()), grad_v(x.v.size());
  runner.Check(state, Attention(runner.ctx, x.shape, x.Q(x.q), x.K(x.k), x.K(x.v), x.View(), x.View(), x.Q(x.out),
                                x.log_sum_exp.data()));
  for (auto _ : state) {
    runner.Check(state, AttentionBackward(runner.ctx, x.shape, x.Q(grad_out), x.Q(x.q), x.K(x.k), x.K(x.v), x.Q(x.out),
                                          x.log_sum_exp.data(), x.View(), x.Q(grad_q), x.K(grad_k), x.K(grad_v)));
  }
  state.SetItemsProcessed(state.iterations() * x.pairs);
}

// Heads, key-value heads, head width, sequence length.
void BackboneShapes(benchmark::internal::Benchmark* b) {
  for (const std::int64_t length : {32, 128, 1024}) b->Args({9, 3, 64, length});
}
void SideShapes(benchmark::internal::Benchmark* b) {
  for (const std::int64_t head_dim : {4, 5, 8}) {
    for (const std::int64_t length : {32, 128, 1024}) b->Args({9, 3, head_dim, length});
  }
  b->Args({9, 3, 16, 128});
}
BENCHMARK(BM_Attention)->Apply(BackboneShapes)->Apply(SideShapes)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_AttentionBackward)->Apply(SideShapes)->Unit(benchmark::kMicrosecond);

constexpr std::int64_t kRows = 1024;

void BM_RmsNorm(benchmark::State& state) {
  Runner runner(state);
  const std::int64_t d = state.range(0);
  std::vector<float> x = Values(kRows * d), y = x, weight = Values(d), inv_rms(kRows);
  for (auto _ : state) {
    runner.Check(state, RmsNorm(runner.ctx, Matrix(x.data(), kRows, d), Matrix(weight.data(), 1, d), 1e-5f,
                                Matrix(y.data(), kRows, d), inv_rms.data()));
  }
  state.SetItemsProcessed(state.iterations() * kRows * d);
}
BENCHMARK(BM_RmsNorm)->Arg(36)->Arg(144)->Arg(576)->Unit(benchmark::kMicrosecond);

void BM_RmsNormBackward(benchmark::State& state) {
  Runner runner(state);
  const std::int64_t d = state.range(0);
  std::vector<float> x = Values(kRows * d), grad_x = x, weight = Values(d), inv_rms(kRows, 1.0f), grad_weight(d);
  for (auto _ : state) {
    runner.Check(state, RmsNormBackward(runner.ctx, Matrix(x.data(), kRows, d), Matrix(x.data(), kRows, d),
                                        Matrix(weight.data(), 1, d), inv_rms.data(), Matrix(grad_x.data(), kRows, d),
                                        Matrix(grad_weight.data(), 1, d), false));
  }
  state.SetItemsProcessed(state.iterations() * kRows * d);
}
BENCHMARK(BM_RmsNormBackward)->Arg(36)->Arg(144)->Unit(benchmark::kMicrosecond);

void BM_SwiGlu(benchmark::State& state) {
  Runner runner(state);
  const std::int64_t d = state.range(0);
  std::vector<float> gate = Values(kRows * d), up = gate, y = gate;
  for (auto _ : state) {
    runner.Check(state, SwiGlu(runner.ctx, Matrix(gate.data(), kRows, d), Matrix(up.data(), kRows, d),
                               Matrix(y.data(), kRows, d)));
  }
  state.SetItemsProcessed(state.iterations() * kRows * d);
}
BENCHMARK(BM_SwiGlu)->Arg(96)->Arg(1536)->Unit(benchmark::kMicrosecond);

void BM_SwiGluBackward(benchmark::State& state) {
  Runner runner(state);
  const std::int64_t d = state.range(0);
  std::vector<float> gate = Values(kRows * d), up = gate, grad_y = gate, grad_gate = gate, grad_up = gate;
  for (auto _ : state) {
    runner.Check(state, SwiGluBackward(runner.ctx, Matrix(grad_y.data(), kRows, d), Matrix(gate.data(), kRows, d),
                                       Matrix(up.data(), kRows, d), Matrix(grad_gate.data(), kRows, d),
                                       Matrix(grad_up.data(), kRows, d)));
  }
  state.SetItemsProcessed(state.iterations() * kRows * d);
}
BENCHMARK(BM_SwiGluBackward)->Arg(96)->Unit(benchmark::kMicrosecond);

void BM_CrossEntropy(benchmark::State& state) {
  Runner runner(state);
  constexpr std::int64_t kTokens = 64;
  constexpr std::int64_t kVocabulary = 49152;
  std::vector<float> logits = Values(kTokens * kVocabulary), losses(kTokens);
  const std::vector<std::int32_t> targets(kTokens, 7);
  for (auto _ : state) {
    // After the first round the operands are gradients, which cost the same.
    runner.Check(state, CrossEntropy(runner.ctx, Matrix(logits.data(), kTokens, kVocabulary), targets.data(), 1.0f,
                                     state.range(0) != 0, losses.data(), nullptr));
  }
  state.SetItemsProcessed(state.iterations() * kTokens * kVocabulary);
}
BENCHMARK(BM_CrossEntropy)->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

void BM_Rotary(benchmark::State& state) {
  Runner runner(state);
  const std::int64_t head_dim = state.range(0);
  const std::int64_t cols = 9 * head_dim;
  std::vector<float> x = Values(kRows * cols), inv_freq(head_dim / 2);
  std::vector<std::int32_t> positions(kRows);
  for (std::int64_t i = 0; i < kRows; ++i) positions[i] = static_cast<std::int32_t>(i);
  for (std::size_t j = 0; j < inv_freq.size(); ++j) inv_freq[j] = std::pow(1e4f, -2.0f * j / head_dim);
  for (auto _ : state) {
    runner.Check(state, Rotary(runner.ctx, Matrix(x.data(), kRows, cols), 9, positions.data(), inv_freq.data(), false));
  }
  state.SetItemsProcessed(state.iterations() * kRows * cols);
}
BENCHMARK(BM_Rotary)->Arg(4)->Arg(64)->Unit(benchmark::kMicrosecond);

void BM_AdamW(benchmark::State& state) {
  Runner runner(state);
  constexpr std::int64_t kCount = 1 << 20;
  std::vector<float> param = Values(kCount), grad = param, m(kCount), v(kCount);
  AdamWParams params;
  params.learning_rate = 1e-3f;
  for (auto _ : state) {
    runner.Check(state, AdamW(runner.ctx, params, kCount, param.data(), grad.data(), m.data(), v.data()));
  }
  state.SetItemsProcessed(state.iterations() * kCount);
}
BENCHMARK(BM_AdamW)->Unit(benchmark::kMicrosecond);

void BM_GateMixBackward(benchmark::State& state) {
  Runner runner(state);
  const std::int64_t d = state.range(0);
  std::vector<float> a = Values(kRows * d), b = a, grad = a, grad_b = a, mix(1, 0.1f), grad_mix(1);
  for (auto _ : state) {
    runner.Check(state, GateMixBackward(runner.ctx, Matrix(grad.data(), kRows, d), Matrix(a.data(), kRows, d),
                                        Matrix(b.data(), kRows, d), Matrix(mix.data(), 1, 1), true, MatrixView(),
                                        Matrix(grad_b.data(), kRows, d), Matrix(grad_mix.data(), 1, 1)));
  }
  state.SetItemsProcessed(state.iterations() * kRows * d);
}
BENCHMARK(BM_GateMixBackward)->Arg(36)->Arg(576)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace qst

BENCHMARK_MAIN();
