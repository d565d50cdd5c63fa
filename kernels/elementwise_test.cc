#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ops.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/reference_ops.h"
#include "kernels/testing/test_matrix.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

constexpr Activation kActivations[] = {Activation::kIdentity, Activation::kRelu, Activation::kSilu, Activation::kGelu};
constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};

struct Size {
  std::int64_t rows;
  std::int64_t cols;
};

std::vector<Size> Sizes() { return {{0, 3}, {3, 0}, {1, 1}, {2, 7}, {3, 8}, {5, 29}, {300, 17}}; }

// What rounding to the type of an output adds to the error of f32 arithmetic.
double OutputError(DType dtype) { return dtype == DType::kF32 ? 0.0 : RoundingError(dtype); }

class ElementwiseTest : public OpTest {
 protected:
  Random random_{81};
};

TEST_P(ElementwiseTest, ActivationsMatchReference) {
  for (const Size& size : Sizes()) {
    for (const DType dtype : OperandTypes()) {
      const DMatrix x = Rounded(random_.NormalMatrix(size.rows, size.cols, 4.0), dtype);
      const DMatrix grad_y = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
      for (const Activation activation : kActivations) {
        TestMatrix y(size.rows, size.cols, dtype, 2);
        QST_ASSERT_OK(Activate(Context(), activation, TestMatrix(x, dtype, 1), y));
        EXPECT_TRUE(IsClose(y, ReferenceActivate(activation, x), Tolerance(1) + OutputError(dtype), 1.0))
            << static_cast<int>(activation) << " " << DTypeName(dtype);
        TestMatrix grad_x(size.rows, size.cols, dtype, 2);
        QST_ASSERT_OK(ActivateBackward(Context(), activation, TestMatrix(grad_y, dtype), TestMatrix(x, dtype), grad_x));
        EXPECT_TRUE(IsClose(grad_x, ReferenceActivateBackward(activation, grad_y, x),
                            4.0 * Tolerance(1) + OutputError(dtype), 1.0))
            << static_cast<int>(activation) << " " << DTypeName(dtype);

        TestMatrix in_place(x, dtype);
        QST_ASSERT_OK(Activate(Context(), activation, in_place, in_place));
        EXPECT_EQ(in_place.Bits(), y.Bits());
        TestMatrix grad_in_place(grad_y, dtype);
        TestMatrix over_x(x, dtype);
        QST_ASSERT_OK(ActivateBackward(Context(), activation, grad_in_place, TestMatrix(x, dtype), grad_in_place));
        EXPECT_EQ(grad_in_place.Bits(), grad_x.Bits());
        QST_ASSERT_OK(ActivateBackward(Context(), activation, TestMatrix(grad_y, dtype), over_x, over_x));
        EXPECT_EQ(over_x.Bits(), grad_x.Bits());
      }
    }
  }
}

TEST_P(ElementwiseTest, SiluIsAccurateOverTheWholeRange) {
  // exp of every size behind silu's own formula, down to subnormal numbers and up to infinity.
  DMatrix x(1, 4001);
  for (std::int64_t j = 0; j < x.cols; ++j) x.at(0, j) = static_cast<double>(static_cast<float>(-100.0 + 0.05 * j));
  TestMatrix y(1, x.cols);
  QST_ASSERT_OK(Activate(Context(), Activation::kSilu, TestMatrix(x), y));
  const DMatrix actual = y.ToDouble();
  const DMatrix expected = ReferenceActivate(Activation::kSilu, x);
  for (std::int64_t j = 0; j < x.cols; ++j) {
    // Below -87, 1 + exp(-x) leaves what float32 can invert.
    const double absolute = x.at(0, j) < -87.0 ? 1e-35 : 0.0;
    EXPECT_NEAR(actual.at(0, j), expected.at(0, j), 3e-7 * std::abs(expected.at(0, j)) + absolute) << x.at(0, j);
  }
}

TEST_P(ElementwiseTest, SwiGluOfTinyAndHugeGatesIsFinite) {
  DMatrix gate(1, 8);
  const double values[] = {0.0, 1e-38, -1e-38, 1e-30, -1e4, -3e38, 3e38, -88.5};
  for (std::int64_t j = 0; j < gate.cols; ++j) gate.at(0, j) = static_cast<double>(static_cast<float>(values[j]));
  DMatrix up(1, 8);
  for (std::int64_t j = 0; j < up.cols; ++j) up.at(0, j) = 1.0;
  TestMatrix y(1, 8);
  QST_ASSERT_OK(SwiGlu(Context(), TestMatrix(gate), TestMatrix(up), y));
  const DMatrix actual = y.ToDouble();
  const DMatrix expected = ReferenceSwiGlu(gate, up);
  for (std::int64_t j = 0; j < up.cols; ++j) {
    EXPECT_NEAR(actual.at(0, j), expected.at(0, j), 3e-7 * std::abs(expected.at(0, j)) + 1e-35) << gate.at(0, j);
  }
}

TEST_P(ElementwiseTest, SwiGluMatchesReference) {
  for (const Size& size : Sizes()) {
    for (const DType dtype : OperandTypes()) {
      const DMatrix gate = Rounded(random_.NormalMatrix(size.rows, size.cols, 3.0), dtype);
      const DMatrix up = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
      const DMatrix grad_y = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
      const double error = OutputError(dtype);
      TestMatrix y(size.rows, size.cols, dtype, 3);
      QST_ASSERT_OK(SwiGlu(Context(), TestMatrix(gate, dtype, 1), TestMatrix(up, dtype), y));
      EXPECT_TRUE(IsClose(y, ReferenceSwiGlu(gate, up), Tolerance(1) + error)) << DTypeName(dtype);
      TestMatrix grad_gate(size.rows, size.cols, dtype, 1);
      TestMatrix grad_up(size.rows, size.cols, dtype, 2);
      QST_ASSERT_OK(SwiGluBackward(Context(), TestMatrix(grad_y, dtype), TestMatrix(gate, dtype), TestMatrix(up, dtype),
                                   grad_gate, grad_up));
      const SwiGluGrads expected = ReferenceSwiGluBackward(grad_y, gate, up);
      EXPECT_TRUE(IsClose(grad_gate, expected.gate, 4.0 * Tolerance(1) + error, 1.0)) << DTypeName(dtype);
      EXPECT_TRUE(IsClose(grad_up, expected.up, Tolerance(1) + error)) << DTypeName(dtype);
      TestMatrix over_gate(gate, dtype);
      QST_ASSERT_OK(SwiGlu(Context(), over_gate, TestMatrix(up, dtype), over_gate));
      EXPECT_EQ(over_gate.Bits(), y.Bits());
      TestMatrix over_up(up, dtype);
      QST_ASSERT_OK(SwiGlu(Context(), TestMatrix(gate, dtype), over_up, over_up));
      EXPECT_EQ(over_up.Bits(), y.Bits());
    }
  }
}

TEST_P(ElementwiseTest, GateMixMatchesReference) {
  for (const Size& size : Sizes()) {
    if (size.cols == 0) continue;
    for (const bool is_shared : {true, false}) {
      for (const bool apply_sigmoid : {true, false}) {
        const DMatrix a = random_.NormalMatrix(size.rows, size.cols);
        const DMatrix b = random_.NormalMatrix(size.rows, size.cols);
        const DMatrix mix = random_.NormalMatrix(1, is_shared ? 1 : size.cols);
        TestMatrix out(size.rows, size.cols, DType::kF32, 3);
        QST_ASSERT_OK(
            GateMix(Context(), TestMatrix(a, DType::kF32, 1), TestMatrix(b), TestMatrix(mix), apply_sigmoid, out));
        EXPECT_TRUE(IsClose(out, ReferenceGateMix(a, b, mix, apply_sigmoid), Tolerance(2)));
        TestMatrix over_a(a);
        QST_ASSERT_OK(GateMix(Context(), over_a, TestMatrix(b), TestMatrix(mix), apply_sigmoid, over_a));
        EXPECT_EQ(over_a.Bits(), out.Bits());
        TestMatrix over_b(b);
        QST_ASSERT_OK(GateMix(Context(), TestMatrix(a), over_b, TestMatrix(mix), apply_sigmoid, over_b));
        EXPECT_EQ(over_b.Bits(), out.Bits());
      }
    }
  }
}

TEST_P(ElementwiseTest, GateMixOfOneIsExactlyB) {
  const DMatrix a = random_.NormalMatrix(4, 21, 1e4);
  const DMatrix b = random_.NormalMatrix(4, 21);
  DMatrix one(1, 1);
  one.at(0, 0) = 1.0;
  TestMatrix out(4, 21);
  QST_ASSERT_OK(GateMix(Context(), TestMatrix(a), TestMatrix(b), TestMatrix(one), false, out));
  EXPECT_EQ(out.Bits(), TestMatrix(b).Bits());
}

TEST_P(ElementwiseTest, GateMixTakesOneSixteenBitTypeBesideF32) {
  if (!IsCuda()) GTEST_SKIP() << "the CPU backend has f32 only";
  const DMatrix mix = random_.NormalMatrix(1, 1);
  const DMatrix mixes = random_.NormalMatrix(1, 29);
  for (const DType a_dtype : kFloats) {
    for (const DType b_dtype : kFloats) {
      const DMatrix a = Rounded(random_.NormalMatrix(5, 29), a_dtype);
      const DMatrix b = Rounded(random_.NormalMatrix(5, 29), b_dtype);
      const DMatrix grad_out = random_.NormalMatrix(5, 29);
      const bool is_mixed = a_dtype != b_dtype && a_dtype != DType::kF32 && b_dtype != DType::kF32;
      for (const DType out_dtype : kFloats) {
        TestMatrix out(5, 29, out_dtype, 1);
        const absl::Status status =
            GateMix(Context(), TestMatrix(a, a_dtype), TestMatrix(b, b_dtype), TestMatrix(mixes), true, out);
        const bool is_refused =
            is_mixed || (out_dtype != DType::kF32 && ((a_dtype != DType::kF32 && a_dtype != out_dtype) ||
                                                      (b_dtype != DType::kF32 && b_dtype != out_dtype)));
        if (is_refused) {
          EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("one 16-bit type")));
          continue;
        }
        QST_ASSERT_OK(status);
        EXPECT_TRUE(IsClose(out, ReferenceGateMix(a, b, mixes, true), Tolerance(2) + OutputError(out_dtype), 1.0))
            << DTypeName(a_dtype) << ", " << DTypeName(b_dtype) << " to " << DTypeName(out_dtype);
      }
      for (const DMatrix& m : {mix, mixes}) {
        TestMatrix grad_mix(DMatrix(1, m.cols));
        const absl::Status status =
            GateMixBackward(Context(), TestMatrix(grad_out), TestMatrix(a, a_dtype), TestMatrix(b, b_dtype),
                            TestMatrix(m), true, MatrixView(), MatrixView(), grad_mix);
        if (is_mixed) {
          EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("one 16-bit type")));
          continue;
        }
        QST_ASSERT_OK(status);
        EXPECT_TRUE(
            IsClose(grad_mix, ReferenceGateMixBackward(grad_out, a, b, m, true).mix, 4.0 * Tolerance(145), 1.0));
      }
    }
  }
}

TEST_P(ElementwiseTest, GateMixBackwardMatchesReference) {
  for (const Size& size : Sizes()) {
    if (size.cols == 0) continue;
    for (const bool is_shared : {true, false}) {
      for (const bool apply_sigmoid : {true, false}) {
        const DMatrix a = random_.NormalMatrix(size.rows, size.cols);
        const DMatrix b = random_.NormalMatrix(size.rows, size.cols);
        const DMatrix mix = random_.NormalMatrix(1, is_shared ? 1 : size.cols);
        const DMatrix grad_out = random_.NormalMatrix(size.rows, size.cols);
        const GateMixGrads expected = ReferenceGateMixBackward(grad_out, a, b, mix, apply_sigmoid);
        TestMatrix grad_a(size.rows, size.cols, DType::kF32, 1);
        TestMatrix grad_b(size.rows, size.cols, DType::kF32, 2);
        const DMatrix before = random_.NormalMatrix(1, mix.cols);
        TestMatrix grad_mix(before);
        QST_ASSERT_OK(GateMixBackward(Context(), TestMatrix(grad_out), TestMatrix(a), TestMatrix(b), TestMatrix(mix),
                                      apply_sigmoid, grad_a, grad_b, grad_mix));
        EXPECT_TRUE(IsClose(grad_a, expected.a, Tolerance(2)));
        EXPECT_TRUE(IsClose(grad_b, expected.b, Tolerance(2)));
        DMatrix sum = expected.mix;
        for (std::int64_t j = 0; j < mix.cols; ++j) sum.at(0, j) += before.at(0, j);
        // Terms of either sign: the error is relative to the root of their number.
        const double terms = static_cast<double>(size.rows * (is_shared ? size.cols : 1));
        EXPECT_TRUE(IsClose(grad_mix, sum, 4.0 * Tolerance(2), 1.0 + std::sqrt(terms)));

        // In place over grad_out, both wanted and a alone; nothing else needed.
        TestMatrix over(grad_out);
        TestMatrix grad_b2(size.rows, size.cols);
        QST_ASSERT_OK(GateMixBackward(Context(), over, ConstMatrixView(), ConstMatrixView(), TestMatrix(mix),
                                      apply_sigmoid, over, grad_b2, MatrixView()));
        EXPECT_EQ(over.Bits(), grad_a.Bits());
        EXPECT_EQ(grad_b2.Bits(), grad_b.Bits());
        TestMatrix over_b(grad_out);
        QST_ASSERT_OK(GateMixBackward(Context(), over_b, ConstMatrixView(), ConstMatrixView(), TestMatrix(mix),
                                      apply_sigmoid, MatrixView(), over_b, MatrixView()));
        EXPECT_EQ(over_b.Bits(), grad_b.Bits());
      }
    }
  }
}

TEST_P(ElementwiseTest, GateMixBackwardSumsManyRows) {
  // On a GPU more chunks of rows than threads that add them.
  const DMatrix a = random_.NormalMatrix(33000, 2);
  const DMatrix b = random_.NormalMatrix(33000, 2);
  const DMatrix grad_out = random_.NormalMatrix(33000, 2);
  for (const std::int64_t mix_cols : {1, 2}) {
    const DMatrix mix = random_.NormalMatrix(1, mix_cols);
    TestMatrix grad_mix(DMatrix(1, mix_cols));
    QST_ASSERT_OK(GateMixBackward(Context(), TestMatrix(grad_out), TestMatrix(a), TestMatrix(b), TestMatrix(mix), true,
                                  MatrixView(), MatrixView(), grad_mix));
    EXPECT_TRUE(IsClose(grad_mix, ReferenceGateMixBackward(grad_out, a, b, mix, true).mix, 4.0 * Tolerance(2),
                        std::sqrt(66000.0)));
  }
}

TEST_P(ElementwiseTest, AddIntoCastsAndAddsBetweenAllFloatTypes) {
  for (const Size& size : Sizes()) {
    for (const DType from : kFloats) {
      for (const DType to : kFloats) {
        const DMatrix x = Rounded(random_.NormalMatrix(size.rows, size.cols), from);
        const DMatrix y = Rounded(random_.NormalMatrix(size.rows, size.cols), to);
        TestMatrix cast(size.rows, size.cols, to, 3);
        QST_ASSERT_OK(AddInto(Context(), TestMatrix(x, from, 1), cast, /*accumulate=*/false));
        EXPECT_EQ(cast.Bits(), TestMatrix(x, to).Bits()) << DTypeName(from) << " to " << DTypeName(to);
        EXPECT_TRUE(cast.GuardsIntact());
        DMatrix sum = x;
        for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += y.values[i];
        TestMatrix added(y, to, 3);
        QST_ASSERT_OK(AddInto(Context(), TestMatrix(x, from, 1), added, /*accumulate=*/true));
        EXPECT_EQ(added.Bits(), TestMatrix(sum, to).Bits()) << DTypeName(from) << " to " << DTypeName(to);
        EXPECT_TRUE(added.GuardsIntact());
      }
    }
  }
}

TEST_P(ElementwiseTest, CastsRoundToNearestEvenAndKeepSpecialValues) {
  const double inf = std::numeric_limits<double>::infinity();
  DMatrix x(1, 9);
  x.values = {1.00390625, 1.01171875, -1.00390625, 3.4e38, inf, -inf, std::nan(""), 1e-40, 0.0};
  TestMatrix bf16(1, 9, DType::kBF16);
  QST_ASSERT_OK(AddInto(Context(), TestMatrix(x), bf16, false));
  const DMatrix actual = bf16.ToDouble();
  EXPECT_EQ(actual.values[0], 1.0);       // halfway, down to even
  EXPECT_EQ(actual.values[1], 1.015625);  // halfway, up to even
  EXPECT_EQ(actual.values[2], -1.0);
  EXPECT_EQ(actual.values[3], inf);  // beyond the largest bf16
  EXPECT_EQ(actual.values[4], inf);
  EXPECT_EQ(actual.values[5], -inf);
  EXPECT_TRUE(std::isnan(actual.values[6]));
  EXPECT_EQ(actual.values[8], 0.0);
  if (!IsCuda()) {  // A GPU has one NaN for all.
    EXPECT_EQ(bf16.Bits(), TestMatrix(x, DType::kBF16).Bits());
  }
}

TEST_P(ElementwiseTest, GatherAndScatterMoveRows) {
  for (const DType dtype : kFloats) {
    const DMatrix x = Rounded(random_.NormalMatrix(9, 13), dtype);
    const Indices indices = {4, 0, 8, 3};
    for (const DType y_dtype : OperandTypes()) {
      if (y_dtype != DType::kF32 && y_dtype != dtype) continue;
      TestMatrix y(4, 13, y_dtype, 2);
      QST_ASSERT_OK(GatherRows(Context(), TestMatrix(x, dtype, 1), Reachable(indices).data(), y));
      EXPECT_TRUE(IsClose(y, ReferenceGatherRows(x, indices), 0.0));
    }
  }
  const Indices indices = {4, 0, 8, 3};
  const DMatrix grad_y = random_.NormalMatrix(4, 13);
  const DMatrix before = random_.NormalMatrix(9, 13);
  TestMatrix grad_x(before, DType::kF32, 5);
  QST_ASSERT_OK(ScatterAddRows(Context(), TestMatrix(grad_y), Reachable(indices).data(), grad_x));
  EXPECT_TRUE(IsClose(grad_x, ReferenceScatterAddRows(grad_y, indices, before), RoundingError(DType::kF32)));
}

TEST_P(ElementwiseTest, PoolingMatchesReference) {
  for (const DType dtype : kFloats) {
    for (const Size& size : {Size{3, 16}, Size{2, 17}, Size{1, 1}, Size{40, 100}}) {
      const DMatrix x = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
      for (const std::int64_t cols : {std::int64_t{1}, (size.cols + 2) / 3, size.cols}) {
        for (const Pooling pooling : {Pooling::kMax, Pooling::kAverage}) {
          for (const DType y_dtype : OperandTypes()) {
            if (y_dtype != DType::kF32 && y_dtype != dtype) continue;
            TestMatrix y(size.rows, cols, y_dtype, 1);
            QST_ASSERT_OK(PoolColumns(Context(), pooling, TestMatrix(x, dtype, 2), y));
            EXPECT_TRUE(IsClose(y, ReferencePoolColumns(pooling, x, cols),
                                pooling == Pooling::kMax ? 0.0 : Tolerance(size.cols) + OutputError(y_dtype)));
          }
        }
      }
    }
  }
}

TEST_P(ElementwiseTest, WhereOperandsLieChangesNoBit) {
  constexpr std::int64_t kRows = 9;
  // Whole vectors only, and with a tail; the poolings take 4 columns each.
  for (const std::int64_t cols : {64, 52}) {
    for (const DType dtype : OperandTypes()) {
      const DMatrix a = random_.NormalMatrix(kRows, cols);
      const DMatrix b = random_.NormalMatrix(kRows, cols);
      const DMatrix g = random_.NormalMatrix(kRows, cols);
      const DMatrix mix = random_.NormalMatrix(1, cols);
      const TestVector<std::int32_t> indices = Reachable(Indices{8, 1, 0, 3, 7, 2, 5, 6, 4});
      const auto run = [&](TestStart start, std::int64_t padding) {
        const auto in = [&](const DMatrix& values, DType type) { return TestMatrix(values, type, padding, start); };
        const TestMatrix a_in = in(a, dtype), b_in = in(b, dtype), g_in = in(g, dtype), g_wide = in(g, DType::kF32);
        const TestMatrix mix_in = in(mix, DType::kF32);
        std::vector<TestMatrix> out(11, TestMatrix(kRows, cols, dtype, padding, start));
        for (TestMatrix* m : {&out[5], &out[6], &out[9]}) *m = in(b, DType::kF32);
        QST_EXPECT_OK(Activate(Context(), Activation::kGelu, a_in, out[0]));
        QST_EXPECT_OK(ActivateBackward(Context(), Activation::kSilu, g_in, a_in, out[1]));
        QST_EXPECT_OK(SwiGlu(Context(), a_in, b_in, out[2]));
        QST_EXPECT_OK(SwiGluBackward(Context(), g_in, a_in, b_in, out[3], out[4]));
        QST_EXPECT_OK(GateMixBackward(Context(), g_wide, {}, {}, mix_in, true, out[5], out[6], MatrixView()));
        QST_EXPECT_OK(GateMix(Context(), a_in, b_in, mix_in, true, out[7]));
        QST_EXPECT_OK(AddInto(Context(), b_in, out[7], /*accumulate=*/true));
        QST_EXPECT_OK(AddInto(Context(), g_wide, out[8], /*accumulate=*/false));
        QST_EXPECT_OK(GatherRows(Context(), a_in, indices.data(), out[10]));
        QST_EXPECT_OK(ScatterAddRows(Context(), g_wide, indices.data(), out[9]));
        std::vector<std::string> bits;
        for (const TestMatrix& m : out) {
          EXPECT_TRUE(m.GuardsIntact());
          bits.push_back(m.Bits());
        }
        for (const std::int64_t width : {cols / 4, cols / 2, std::int64_t{1}}) {
          TestMatrix pooled(kRows, width, DType::kF32, padding, start);
          QST_EXPECT_OK(PoolColumns(Context(), Pooling::kAverage, a_in, pooled));
          EXPECT_TRUE(pooled.GuardsIntact());
          bits.push_back(pooled.Bits());
        }
        return bits;
      };
      const std::vector<std::string> expected = run(TestStart::kMisaligned, 0);
      for (const std::int64_t padding : {0, 8, 3}) {
        EXPECT_EQ(run(TestStart::kAligned, padding), expected) << cols << " " << DTypeName(dtype) << " " << padding;
      }
    }
  }
}

TEST_P(ElementwiseTest, ThreadsAndOtherRowsChangeNoBit) {
  constexpr std::int64_t kRows = 700;
  constexpr std::int64_t kCols = 45;
  const TestMatrix a(random_.NormalMatrix(kRows, kCols));
  const TestMatrix b(random_.NormalMatrix(kRows, kCols));
  const TestMatrix g(random_.NormalMatrix(kRows, kCols));
  const TestMatrix mix(random_.NormalMatrix(1, 1));
  TestMatrix glu(kRows, kCols), mixed(kRows, kCols), silu(kRows, kCols), grad_mix(DMatrix(1, 1));
  QST_ASSERT_OK(SwiGlu(Context(1), a, b, glu));
  QST_ASSERT_OK(GateMix(Context(1), a, b, mix, true, mixed));
  QST_ASSERT_OK(Activate(Context(1), Activation::kSilu, a, silu));
  QST_ASSERT_OK(GateMixBackward(Context(1), g, a, b, mix, true, MatrixView(), MatrixView(), grad_mix));
  for (const int threads : {2, 3}) {
    TestMatrix out(kRows, kCols);
    QST_ASSERT_OK(SwiGlu(Context(threads), a, b, out));
    EXPECT_EQ(out.Bits(), glu.Bits());
    QST_ASSERT_OK(GateMix(Context(threads), a, b, mix, true, out));
    EXPECT_EQ(out.Bits(), mixed.Bits());
    QST_ASSERT_OK(Activate(Context(threads), Activation::kSilu, a, out));
    EXPECT_EQ(out.Bits(), silu.Bits());
    TestMatrix grad(DMatrix(1, 1));
    QST_ASSERT_OK(GateMixBackward(Context(threads), g, a, b, mix, true, MatrixView(), MatrixView(), grad));
    EXPECT_EQ(grad.Bits(), grad_mix.Bits());
  }
  TestMatrix row(1, kCols);
  QST_ASSERT_OK(SwiGlu(Context(), Rows(a.view(), 333, 334), Rows(b.view(), 333, 334), row));
  EXPECT_EQ(row.Bits(), glu.Bits(333, 334));
}

TEST_P(ElementwiseTest, RefusesOperandsThatDisagree) {
  const TestMatrix x(random_.NormalMatrix(3, 8));
  const TestMatrix other(random_.NormalMatrix(3, 7));
  const TestMatrix narrow(random_.NormalMatrix(3, 8), DType::kBF16);
  const TestMatrix mix(random_.NormalMatrix(1, 8));
  const TestMatrix wrong_mix(random_.NormalMatrix(1, 3));
  TestMatrix y(3, 8);
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(Activate(Context(), Activation::kSilu, other, y), StatusIs(invalid, HasSubstr("y is [3, 8]")));
  EXPECT_THAT(Activate(Context(), static_cast<Activation>(77), x, y), StatusIs(invalid, HasSubstr("activation 77")));
  EXPECT_THAT(Activate(Context(), Activation::kSilu, narrow, y),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr(IsCuda() ? "bf16 and f32" : "x is bf16")));
  EXPECT_THAT(SwiGlu(Context(), x, narrow, y),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr(IsCuda() ? "f32 and bf16" : "up is bf16")));
  EXPECT_THAT(GatherRows(Context(), x, nullptr, y), StatusIs(invalid, HasSubstr("indices is null")));
  EXPECT_THAT(ActivateBackward(Context(), Activation::kSilu, other, x, y), StatusIs(invalid, HasSubstr("grad_y")));
  EXPECT_THAT(SwiGlu(Context(), x, other, y), StatusIs(invalid, HasSubstr("up is")));
  EXPECT_THAT(SwiGluBackward(Context(), x, x, x, y, TestMatrix(2, 8)), StatusIs(invalid, HasSubstr("grad_up")));
  EXPECT_THAT(GateMix(Context(), x, x, wrong_mix, true, y), StatusIs(invalid, HasSubstr("mix is [1, 3]")));
  EXPECT_THAT(GateMixBackward(Context(), x, x, x, mix, true, y, MatrixView(), TestMatrix(1, 1)),
              StatusIs(invalid, HasSubstr("grad_mix is [1, 1], need [1, 8]")));
  EXPECT_THAT(AddInto(Context(), other, y, false), StatusIs(invalid));
  ConstMatrixView integers = x.view();
  integers.dtype = DType::kI32;
  EXPECT_THAT(AddInto(Context(), integers, y, false),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("x is i32")));
  if (!IsCuda()) {  // A GPU's memory is not looked into: who uploads indices has checked them.
    const Indices outside = {0, 1, 3};
    EXPECT_THAT(GatherRows(Context(), x, outside.data(), y), StatusIs(invalid, HasSubstr("indices[2] is 3")));
    EXPECT_THAT(ScatterAddRows(Context(), x, outside.data(), y), StatusIs(invalid, HasSubstr("indices[2] is 3")));
  }
  EXPECT_THAT(PoolColumns(Context(), Pooling::kMax, x, TestMatrix(3, 9)), StatusIs(invalid, HasSubstr("more than")));
  EXPECT_THAT(PoolColumns(Context(), Pooling::kMax, x, TestMatrix(2, 4)), StatusIs(invalid));
}

QST_INSTANTIATE_OP_TEST(ElementwiseTest);

}  // namespace
}  // namespace qst
