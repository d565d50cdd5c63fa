// What only the host shim can show: small limits, so that small weights take several panels and chunks; work that runs
// as late, as early or as mixed as streams allow; a cuBLASLt that refuses. Empty in other builds.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_shim/cublaslt_hooks.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm/panels.cuh"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/device_memory.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "kernels/testing/reference_linear.h"
#include "kernels/testing/test_memory.h"
#include "kernels/testing/test_weight.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace cuda {
namespace {

using ::testing::HasSubstr;
using testing_kernels::GuardedMatrix;
using testing_kernels::TestWeight;
using testing_kernels::WeightKind;
using testing_kernels::WeightKindName;
using testing_kernels::WeightPlace;

using Bits = std::vector<std::uint32_t>;

Bits BitsOf(const GuardedMatrix& m, std::int64_t rows, std::int64_t cols) {
  EXPECT_TRUE(SynchronizeTestDevice());
  Bits bits;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) bits.push_back(FloatBits(m.Get(i, j)));
  }
  return bits;
}

// A device with one stream of its own.
struct Gpu {
  std::unique_ptr<Device> device = Device::Open(DeviceOptions()).value();
  StreamPtr stream = device->NewStream().value();
  OpContext ctx{DeviceType::kCuda, nullptr, CpuIsa::kAuto, stream.get()};

  // Panels of 256 rows, 16 rows in scratch memory, one chunk of partial gradients.
  void SetSmallLimits() {
    LinearLimits& limits = LinearState::Of(*stream).value()->limits;
    limits.scratch_bytes = 1;
    limits.scratch_rows = 16;
    limits.panel_bytes = 1;
    limits.min_panel_rows = 1;
    limits.partial_bytes = 1;
  }
};

// Operands of all ops of one layer, and what they made of them.
class Layer {
 public:
  static constexpr std::int64_t kTokens = 1100, kN = 700, kK = 24;

  Layer(WeightKind kind, DType x_dtype, DType y_dtype, bool is_aligned, std::mt19937* random)
      : w_(kind, kN, kK, 64, random, is_aligned ? WeightPlace::kVectors : WeightPlace::kElements),
        x_(x_dtype, kTokens, kK, kK + (is_aligned ? 0 : 1)),
        bias_(DType::kF32, 1, kN, kN, is_aligned ? 0 : 4),
        y_dtype_(y_dtype),
        padding_(is_aligned ? 4 : 1) {
    x_.FillNormal(random);
    bias_.FillNormal(random);
  }

  // y of the first `tokens` tokens.
  Bits Forward(const OpContext& ctx, std::int64_t tokens) {
    GuardedMatrix y(y_dtype_, tokens, kN, kN + padding_);
    QST_EXPECT_OK(Linear(ctx, Rows(x_.view(), 0, tokens), w_.view(), bias_.view(), y.view(), false));
    QST_EXPECT_OK(Linear(ctx, Rows(x_.view(), 0, tokens), w_.view(), MatrixView{}, y.view(), true));
    const Bits bits = BitsOf(y, tokens, kN);
    EXPECT_TRUE(y.GuardsAreIntact());
    return bits;
  }

  // grad_x of one gradient that is 1 at element 5 of every token and panel, so that sums are exact in any order.
  Bits BackwardInput(const OpContext& ctx, std::int64_t tokens) {
    GuardedMatrix grad_y(DType::kF32, tokens, kN, kN + padding_), grad_x(DType::kF32, tokens, kK, kK + padding_);
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (std::int64_t j = 0; j < kN; ++j) grad_y.Set(i, j, j == 5 ? 1.0f : 0.0f);
    }
    QST_EXPECT_OK(LinearBackwardInput(ctx, grad_y.view(), w_.view(), grad_x.view(), false));
    const Bits bits = BitsOf(grad_x, tokens, kK);
    EXPECT_TRUE(grad_x.GuardsAreIntact());
    return bits;
  }

  Bits BackwardWeight(const OpContext& ctx, std::int64_t tokens) {
    GuardedMatrix grad_w(DType::kF32, kN, kK, kK + padding_), grad_bias(DType::kF32, 1, kN, kN);
    GuardedMatrix grad_y(DType::kF32, tokens, kN, kN + padding_);
    std::mt19937 random(3);
    grad_y.FillNormal(&random);
    QST_EXPECT_OK(
        LinearBackwardWeight(ctx, grad_y.view(), Rows(x_.view(), 0, tokens), grad_w.view(), grad_bias.view(), false));
    Bits bits = BitsOf(grad_w, kN, kK);
    const Bits bias = BitsOf(grad_bias, 1, kN);
    bits.insert(bits.end(), bias.begin(), bias.end());
    EXPECT_TRUE(grad_w.GuardsAreIntact());
    return bits;
  }

  WeightView weight() { return w_.view(); }
  ConstMatrixView x() { return x_.view(); }

 private:
  TestWeight w_;
  GuardedMatrix x_;
  GuardedMatrix bias_;
  DType y_dtype_;
  std::int64_t padding_;
};

constexpr WeightKind kKinds[] = {WeightKind::kF32, WeightKind::kF16, WeightKind::kBF16, WeightKind::kNF4};

TEST(LinearLimitsTest, PanelsAndChunksOfRowsChangeNoBit) {
  std::mt19937 random(1);
  Gpu large, small;
  small.SetSmallLimits();
  for (const WeightKind kind : kKinds) {
    for (const bool is_aligned : {false, true}) {
      for (const auto& [x_dtype, y_dtype] :
           {std::pair{DType::kF32, DType::kF32}, {DType::kBF16, DType::kF16}, {DType::kF16, DType::kBF16}}) {
        SCOPED_TRACE(testing::Message() << WeightKindName(kind) << ", x " << DTypeName(x_dtype) << ", y "
                                        << DTypeName(y_dtype) << ", aligned " << is_aligned);
        Layer layer(kind, x_dtype, y_dtype, is_aligned, &random);
        EXPECT_EQ(layer.Forward(small.ctx, 40), layer.Forward(large.ctx, 40));
        EXPECT_EQ(layer.BackwardInput(small.ctx, 40), layer.BackwardInput(large.ctx, 40));
        EXPECT_EQ(layer.BackwardWeight(small.ctx, 1100), layer.BackwardWeight(large.ctx, 1100));
      }
    }
  }
}

TEST(LinearLimitsTest, ChunksOfASkinnyGradientChangeNoBit) {
  std::mt19937 random(6);
  Gpu large, small;
  small.SetSmallLimits();
  for (const std::int64_t tokens : {1100, 2048}) {
    constexpr std::int64_t kN = 16, kK = 136;
    GuardedMatrix grad_y(DType::kF32, tokens, kN, kN), x(DType::kBF16, tokens, kK, kK);
    grad_y.FillNormal(&random);
    x.FillNormal(&random);
    const auto gradient = [&](const OpContext& ctx, bool accumulate) {
      GuardedMatrix grad_w(DType::kF32, kN, kK, kK);
      std::mt19937 start(9);
      grad_w.FillNormal(&start);
      QST_EXPECT_OK(LinearBackwardWeight(ctx, grad_y.view(), x.view(), grad_w.view(), MatrixView{}, accumulate));
      return BitsOf(grad_w, kN, kK);
    };
    for (const bool accumulate : {false, true}) {
      EXPECT_EQ(gradient(small.ctx, accumulate), gradient(large.ctx, accumulate)) << tokens;
      EXPECT_EQ(gradient(large.ctx, accumulate), gradient(large.ctx, accumulate)) << tokens;
    }
  }
}

class ScopedAsync {
 public:
  explicit ScopedAsync(const char* mode) { setenv("QST_CUDA_SHIM_ASYNC", mode, 1); }
  ~ScopedAsync() {
    EXPECT_TRUE(SynchronizeTestDevice());
    unsetenv("QST_CUDA_SHIM_ASYNC");
  }
};

// Layers one after the other, as a pass enqueues them, between uploads of weights to memory that is used again.
Bits RunPass(const OpContext& ctx, std::mt19937 random) {
  Layer first(WeightKind::kNF4, DType::kBF16, DType::kBF16, true, &random);
  Layer second(WeightKind::kFP4, DType::kF32, DType::kF32, false, &random);
  Layer third(WeightKind::kBF16, DType::kF16, DType::kF32, true, &random);
  constexpr std::int64_t kTokens = 20, kN = Layer::kN, kK = Layer::kK;
  DeviceMemory packed = DeviceMemory::Allocate(ctx, kN * kK / 2).value();
  DeviceMemory absmax = DeviceMemory::Allocate(ctx, kN * kK / 64 * sizeof(float)).value();
  Quant4View uploaded;
  uploaded.rows = kN;
  uploaded.cols = kK;
  uploaded.packed = packed.as<std::uint8_t>();
  uploaded.absmax = absmax.as<float>();
  std::vector<std::unique_ptr<GuardedMatrix>> results;
  const auto linear = [&](const ConstMatrixView& x, const WeightView& w) {
    results.push_back(std::make_unique<GuardedMatrix>(DType::kF32, kTokens, kN, kN));
    QST_EXPECT_OK(Linear(ctx, Rows(x, 0, kTokens), w, MatrixView{}, results.back()->view(), false));
  };
  for (int round = 0; round < 3; ++round) {
    linear(first.x(), first.weight());
    linear(second.x(), second.weight());
    std::vector<std::uint8_t> codes(packed.size_bytes());
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random());
    const std::vector<float> constants(absmax.size_bytes() / sizeof(float), static_cast<float>(round + 1));
    QST_EXPECT_OK(Upload(ctx, codes.data(), packed.size_bytes(), packed.data()));
    QST_EXPECT_OK(Upload(ctx, constants.data(), absmax.size_bytes(), absmax.data()));
    linear(first.x(), WeightView::Quantized(uploaded));
    linear(third.x(), third.weight());
    linear(second.x(), WeightView::Quantized(uploaded));
    // What was just computed is the next one's input, through both kinds of panels.
    GuardedMatrix grad_x(DType::kF32, kTokens, kK, kK);
    QST_EXPECT_OK(LinearBackwardInput(ctx, results.back()->view(), first.weight(), grad_x.view(), false));
    linear(grad_x.view(), second.weight());
  }
  Bits bits;
  for (const auto& result : results) {
    const Bits more = BitsOf(*result, kTokens, kN);
    bits.insert(bits.end(), more.begin(), more.end());
  }
  return bits;
}

TEST(LinearStreamsTest, NoOrderOfWorkThatStreamsAllowChangesABit) {
  Gpu in_order;
  in_order.SetSmallLimits();
  const Bits expected = RunPass(in_order.ctx, std::mt19937(5));
  for (const char* mode : {"late", "early", "1", "1", "1"}) {
    const ScopedAsync async(mode);
    Gpu gpu;
    gpu.SetSmallLimits();
    EXPECT_EQ(RunPass(gpu.ctx, std::mt19937(5)), expected) << mode;
  }
}

class ScopedHooks {
 public:
  explicit ScopedHooks(cuda_shim::CublasLtHooks hooks) { cuda_shim::SetCublasLtHooks(std::move(hooks)); }
  ~ScopedHooks() { cuda_shim::SetCublasLtHooks({}); }
};

// cuBLASLt knows columns first: its m is our n, its n our tokens.
TEST(LinearPinnedAlgorithmTest, RowsOfZerosMakeUpForNumbersOfTokensThatItDoesNotTake) {
  std::mt19937 random(2);
  for (const bool is_aligned : {true, false}) {
    Layer layer(WeightKind::kNF4, DType::kBF16, DType::kF32, is_aligned, &random);
    Gpu plain;
    for (const std::int64_t multiple : {256, 4096}) {
      const Bits forward = layer.Forward(plain.ctx, 20);
      const Bits backward = layer.BackwardInput(plain.ctx, 20);
      cuda_shim::CublasLtHooks hooks;
      hooks.refuses = [multiple](std::int64_t, std::int64_t n, std::int64_t) { return n % multiple != 0; };
      const ScopedHooks scoped(hooks);
      Gpu refusing;
      EXPECT_EQ(layer.Forward(refusing.ctx, 20), forward);
      EXPECT_EQ(layer.BackwardInput(refusing.ctx, 20), backward);
    }
    const Bits gradient = layer.BackwardWeight(plain.ctx, 1100);
    cuda_shim::CublasLtHooks hooks;
    hooks.refuses = [](std::int64_t, std::int64_t, std::int64_t k) { return k != kGradChunkRows; };
    const ScopedHooks scoped(hooks);
    Gpu refusing;
    EXPECT_EQ(layer.BackwardWeight(refusing.ctx, 1100), gradient);
    EXPECT_EQ(layer.BackwardWeight(refusing.ctx, 300), layer.BackwardWeight(plain.ctx, 300));
  }
}

TEST(LinearPinnedAlgorithmTest, OneThatTakesNothingIsAnError) {
  std::mt19937 random(3);
  Layer layer(WeightKind::kNF4, DType::kBF16, DType::kF32, true, &random);
  cuda_shim::CublasLtHooks hooks;
  hooks.refuses = [](std::int64_t, std::int64_t, std::int64_t) { return true; };
  const ScopedHooks scoped(hooks);
  Gpu gpu;
  GuardedMatrix y(DType::kF32, 20, Layer::kN, Layer::kN);
  EXPECT_THAT(Linear(gpu.ctx, Rows(layer.x(), 0, 20), layer.weight(), MatrixView{}, y.view(), false),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("takes neither 20 nor more")));
}

TEST(LinearPinnedAlgorithmTest, OneThatSplitsSumsIsPassedOver) {
  std::mt19937 random(4);
  Layer layer(WeightKind::kF32, DType::kF32, DType::kF32, true, &random);
  Gpu plain;
  const Bits forward = layer.Forward(plain.ctx, 33);
  const Bits gradient = layer.BackwardWeight(plain.ctx, 1100);
  cuda_shim::CublasLtHooks hooks;
  hooks.always_offers_split_k = true;
  const ScopedHooks scoped(hooks);
  Gpu offered;
  EXPECT_EQ(layer.Forward(offered.ctx, 33), forward);
  EXPECT_EQ(layer.BackwardWeight(offered.ctx, 1100), gradient);
}

}  // namespace
}  // namespace cuda
}  // namespace qst
