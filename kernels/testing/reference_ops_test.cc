// The references' backward ops against finite differences of their forward ops, in float64.
#include "kernels/testing/reference_ops.h"

#include <cmath>

#include "gtest/gtest.h"

namespace qst {
namespace {

constexpr double kTolerance = 2e-8;
constexpr double kEps = 1e-5;

TEST(ReferenceOpsTest, RmsNormBackwardMatchesFiniteDifferences) {
  Random random(1);
  const DMatrix x = random.NormalMatrix(3, 7);
  const DMatrix weight = random.NormalMatrix(1, 7);
  const DMatrix grad_y = random.NormalMatrix(3, 7);
  const NormGrads grads = ReferenceRmsNormBackward(grad_y, x, weight, kEps);
  const auto by_x = [&](const DMatrix& m) { return WeightedSum(grad_y, ReferenceRmsNorm(m, weight, kEps)); };
  const auto by_weight = [&](const DMatrix& m) { return WeightedSum(grad_y, ReferenceRmsNorm(x, m, kEps)); };
  EXPECT_TRUE(IsClose(grads.x, NumericalGradient(by_x, x), kTolerance));
  EXPECT_TRUE(IsClose(grads.weight, NumericalGradient(by_weight, weight), kTolerance));
}

TEST(ReferenceOpsTest, LayerNormBackwardMatchesFiniteDifferences) {
  Random random(2);
  const DMatrix x = random.NormalMatrix(3, 6);
  const DMatrix weight = random.NormalMatrix(1, 6);
  const DMatrix bias = random.NormalMatrix(1, 6);
  const DMatrix grad_y = random.NormalMatrix(3, 6);
  const NormGrads grads = ReferenceLayerNormBackward(grad_y, x, weight, kEps);
  const auto loss = [&](const DMatrix& a, const DMatrix& w, const DMatrix& b) {
    return WeightedSum(grad_y, ReferenceLayerNorm(a, w, b, kEps));
  };
  EXPECT_TRUE(
      IsClose(grads.x, NumericalGradient([&](const DMatrix& m) { return loss(m, weight, bias); }, x), kTolerance));
  EXPECT_TRUE(
      IsClose(grads.weight, NumericalGradient([&](const DMatrix& m) { return loss(x, m, bias); }, weight), kTolerance));
  EXPECT_TRUE(
      IsClose(grads.bias, NumericalGradient([&](const DMatrix& m) { return loss(x, weight, m); }, bias), kTolerance));
  const NormGrads plain = ReferenceLayerNormBackward(grad_y, x, DMatrix(), kEps);
  const auto by_x = [&](const DMatrix& m) { return loss(m, DMatrix(), DMatrix()); };
  EXPECT_TRUE(IsClose(plain.x, NumericalGradient(by_x, x), kTolerance));
}

TEST(ReferenceOpsTest, InverseRotaryIsTheTranspose) {
  Random random(3);
  const DMatrix x = random.NormalMatrix(4, 12);
  const DMatrix grad_y = random.NormalMatrix(4, 12);
  const Indices positions = {0, 5, 1, 900};
  const std::vector<float> inv_freq = {1.0f, 0.1f};
  const auto by_x = [&](const DMatrix& m) {
    return WeightedSum(grad_y, ReferenceRotary(m, 3, positions, inv_freq, false));
  };
  EXPECT_TRUE(IsClose(ReferenceRotary(grad_y, 3, positions, inv_freq, true), NumericalGradient(by_x, x), kTolerance));
}

TEST(ReferenceOpsTest, AttentionBackwardMatchesFiniteDifferences) {
  Random random(4);
  const AttentionShape shape{4, 2, 3, 0.6f};
  const Indices offsets = {0, 3, 3, 8};
  const DMatrix q = random.NormalMatrix(8, 12);
  const DMatrix k = random.NormalMatrix(8, 6);
  const DMatrix v = random.NormalMatrix(8, 6);
  const DMatrix grad_out = random.NormalMatrix(8, 12);
  const AttentionGrads grads = ReferenceAttentionBackward(shape, grad_out, q, k, v, offsets);
  const auto loss = [&](const DMatrix& a, const DMatrix& b, const DMatrix& c) {
    return WeightedSum(grad_out, ReferenceAttention(shape, a, b, c, offsets, offsets).out);
  };
  EXPECT_TRUE(IsClose(grads.q, NumericalGradient([&](const DMatrix& m) { return loss(m, k, v); }, q), kTolerance));
  EXPECT_TRUE(IsClose(grads.k, NumericalGradient([&](const DMatrix& m) { return loss(q, m, v); }, k), kTolerance));
  EXPECT_TRUE(IsClose(grads.v, NumericalGradient([&](const DMatrix& m) { return loss(q, k, m); }, v), kTolerance));
}

TEST(ReferenceOpsTest, ActivationSlopesMatchFiniteDifferences) {
  Random random(5);
  const DMatrix x = random.NormalMatrix(3, 9, 2.0);
  const DMatrix grad_y = random.NormalMatrix(3, 9);
  for (const Activation activation : {Activation::kIdentity, Activation::kRelu, Activation::kSilu, Activation::kGelu}) {
    const auto by_x = [&](const DMatrix& m) { return WeightedSum(grad_y, ReferenceActivate(activation, m)); };
    EXPECT_TRUE(IsClose(ReferenceActivateBackward(activation, grad_y, x), NumericalGradient(by_x, x), kTolerance))
        << static_cast<int>(activation);
  }
}

TEST(ReferenceOpsTest, SwiGluBackwardMatchesFiniteDifferences) {
  Random random(6);
  const DMatrix gate = random.NormalMatrix(3, 5);
  const DMatrix up = random.NormalMatrix(3, 5);
  const DMatrix grad_y = random.NormalMatrix(3, 5);
  const SwiGluGrads grads = ReferenceSwiGluBackward(grad_y, gate, up);
  const auto by_gate = [&](const DMatrix& m) { return WeightedSum(grad_y, ReferenceSwiGlu(m, up)); };
  const auto by_up = [&](const DMatrix& m) { return WeightedSum(grad_y, ReferenceSwiGlu(gate, m)); };
  EXPECT_TRUE(IsClose(grads.gate, NumericalGradient(by_gate, gate), kTolerance));
  EXPECT_TRUE(IsClose(grads.up, NumericalGradient(by_up, up), kTolerance));
}

TEST(ReferenceOpsTest, GateMixBackwardMatchesFiniteDifferences) {
  Random random(7);
  const DMatrix a = random.NormalMatrix(4, 5);
  const DMatrix b = random.NormalMatrix(4, 5);
  const DMatrix grad_out = random.NormalMatrix(4, 5);
  for (const std::int64_t mix_cols : {1, 5}) {
    for (const bool apply_sigmoid : {false, true}) {
      const DMatrix mix = random.NormalMatrix(1, mix_cols);
      const GateMixGrads grads = ReferenceGateMixBackward(grad_out, a, b, mix, apply_sigmoid);
      const auto loss = [&](const DMatrix& x, const DMatrix& y, const DMatrix& m) {
        return WeightedSum(grad_out, ReferenceGateMix(x, y, m, apply_sigmoid));
      };
      EXPECT_TRUE(
          IsClose(grads.a, NumericalGradient([&](const DMatrix& m) { return loss(m, b, mix); }, a), kTolerance));
      EXPECT_TRUE(
          IsClose(grads.b, NumericalGradient([&](const DMatrix& m) { return loss(a, m, mix); }, b), kTolerance));
      EXPECT_TRUE(
          IsClose(grads.mix, NumericalGradient([&](const DMatrix& m) { return loss(a, b, m); }, mix), kTolerance));
    }
  }
}

TEST(ReferenceOpsTest, CrossEntropyGradientMatchesFiniteDifferences) {
  Random random(8);
  const DMatrix logits = random.NormalMatrix(3, 7);
  const Indices targets = {6, 0, 3};
  constexpr double kScale = 0.25;
  const auto loss = [&](const DMatrix& m) {
    double sum = 0.0;
    for (const double value : ReferenceCrossEntropy(m, targets, 1.0).losses.values) sum += value;
    return kScale * sum;
  };
  EXPECT_TRUE(
      IsClose(ReferenceCrossEntropy(logits, targets, kScale).grad, NumericalGradient(loss, logits), kTolerance));
}

TEST(ReferenceOpsTest, SquaredErrorGradientMatchesFiniteDifferences) {
  Random random(9);
  const DMatrix x = random.NormalMatrix(4, 1);
  const DMatrix targets = random.NormalMatrix(1, 4);
  constexpr double kScale = 0.25;
  const auto loss = [&](const DMatrix& m) {
    double sum = 0.0;
    for (const double value : ReferenceSquaredError(m, targets, 1.0).losses.values) sum += value;
    return kScale * sum;
  };
  EXPECT_TRUE(IsClose(ReferenceSquaredError(x, targets, kScale).grad, NumericalGradient(loss, x), kTolerance));
}

}  // namespace
}  // namespace qst
