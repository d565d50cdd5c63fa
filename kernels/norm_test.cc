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

constexpr float kEps = 1e-5f;
const double kEpsWide = static_cast<double>(kEps);

struct Size {
  std::int64_t rows;
  std::int64_t cols;
};

// Nothing, single elements, tails of vectors, more rows than one chunk of the reduction; on GPUs a warp a row, several
// warps, and more than the threads of a row can hold.
std::vector<Size> Sizes() {
  return {{0, 4}, {1, 1}, {2, 7}, {3, 8}, {5, 17}, {4, 36}, {700, 33}, {2, 576}, {3, 2049}, {1, 17000}};
}

// What rounding to the type of an output adds to the error of f32 arithmetic.
double OutputError(DType dtype) { return dtype == DType::kF32 ? 0.0 : RoundingError(dtype); }

class NormTest : public OpTest {
 protected:
  Random random_{31};
};

TEST_P(NormTest, RmsNormMatchesReferenceForEveryType) {
  for (const Size& size : Sizes()) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const DType y_dtype : OperandTypes()) {
        const std::int64_t padding = y_dtype == DType::kF32 ? 3 : 0;
        const DMatrix x = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
        const DMatrix weight = random_.NormalMatrix(1, size.cols);
        TestMatrix y(size.rows, size.cols, y_dtype, padding);
        TestMatrix inv_rms(1, size.rows);
        QST_ASSERT_OK(RmsNorm(Context(), TestMatrix(x, dtype, padding), TestMatrix(weight), kEps, y, inv_rms.data()));
        EXPECT_TRUE(IsClose(y, ReferenceRmsNorm(x, weight, kEpsWide), Tolerance(size.cols) + OutputError(y_dtype)))
            << size.rows << " x " << size.cols << " " << DTypeName(dtype) << " to " << DTypeName(y_dtype);
        EXPECT_TRUE(inv_rms.GuardsIntact());
        TestMatrix again(size.rows, size.cols, y_dtype, padding);
        QST_ASSERT_OK(RmsNorm(Context(), TestMatrix(x, dtype, padding), TestMatrix(weight), kEps, again, nullptr));
        EXPECT_EQ(again.Bits(), y.Bits());
      }
    }
  }
}

TEST_P(NormTest, RmsNormBackwardMatchesReference) {
  for (const Size& size : Sizes()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const DMatrix x = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
      const DMatrix weight = random_.NormalMatrix(1, size.cols);
      const DMatrix grad_y = random_.NormalMatrix(size.rows, size.cols);
      const NormGrads expected = ReferenceRmsNormBackward(grad_y, x, weight, kEpsWide);
      const TestMatrix x_in(x, dtype, 2);
      TestMatrix y(size.rows, size.cols);
      TestMatrix inv_rms(1, size.rows);
      QST_ASSERT_OK(RmsNorm(Context(), x_in, TestMatrix(weight), kEps, y, inv_rms.data()));
      TestMatrix grad_x(size.rows, size.cols, DType::kF32, 1);
      const DMatrix before = random_.NormalMatrix(1, size.cols);
      TestMatrix grad_weight(before);
      QST_ASSERT_OK(RmsNormBackward(Context(), TestMatrix(grad_y), x_in, TestMatrix(weight), inv_rms.data(), grad_x,
                                    grad_weight, /*accumulate=*/false));
      // With one column, two terms of this size cancel but for eps.
      const double scale = size.cols > 1 ? -1.0 : std::abs(grad_y.at(0, 0) * weight.at(0, 0) / x.at(0, 0));
      EXPECT_TRUE(IsClose(grad_x, expected.x, 2.0 * Tolerance(size.cols), scale));
      DMatrix expected_weight = expected.weight;
      for (std::int64_t j = 0; j < size.cols; ++j) expected_weight.at(0, j) += before.at(0, j);
      // The sum over rows has inv_rms in it, a sum over columns.
      EXPECT_TRUE(IsClose(grad_weight, expected_weight, 2.0 * Tolerance(size.rows + size.cols)));

      // Once more on top, with frozen weights.
      QST_ASSERT_OK(RmsNormBackward(Context(), TestMatrix(grad_y), x_in, TestMatrix(weight), inv_rms.data(), grad_x,
                                    MatrixView(), /*accumulate=*/true));
      DMatrix twice = expected.x;
      for (double& value : twice.values) value *= 2.0;
      EXPECT_TRUE(IsClose(grad_x, twice, 2.0 * Tolerance(size.cols), 2.0 * scale));
    }
  }
}

TEST_P(NormTest, LayerNormMatchesReferenceForEveryType) {
  for (const Size& size : Sizes()) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const DType y_dtype : OperandTypes()) {
        for (const bool is_affine : {false, true}) {
          const DMatrix x = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
          const DMatrix weight = is_affine ? random_.NormalMatrix(1, size.cols) : DMatrix();
          const DMatrix bias = is_affine ? random_.NormalMatrix(1, size.cols) : DMatrix();
          TestMatrix y(size.rows, size.cols, y_dtype, 3);
          QST_ASSERT_OK(LayerNorm(Context(), TestMatrix(x, dtype, 1), TestMatrix(weight), TestMatrix(bias), kEps, y,
                                  nullptr, nullptr));
          EXPECT_TRUE(IsClose(y, ReferenceLayerNorm(x, weight, bias, kEpsWide),
                              2.0 * Tolerance(size.cols) + OutputError(y_dtype), 1.0));
        }
      }
    }
  }
}

TEST_P(NormTest, LayerNormBackwardMatchesReference) {
  for (const Size& size : Sizes()) {
    // One column is its own mean: its gradient is rounding noise around 0.
    if (size.cols == 1) continue;
    for (const bool is_affine : {false, true}) {
      const DMatrix x = random_.NormalMatrix(size.rows, size.cols);
      const DMatrix weight = is_affine ? random_.NormalMatrix(1, size.cols) : DMatrix();
      const DMatrix bias = is_affine ? random_.NormalMatrix(1, size.cols) : DMatrix();
      const DMatrix grad_y = random_.NormalMatrix(size.rows, size.cols);
      const NormGrads expected = ReferenceLayerNormBackward(grad_y, x, weight, kEpsWide);
      TestMatrix y(size.rows, size.cols);
      TestMatrix mean(1, size.rows);
      TestMatrix inv_std(1, size.rows);
      QST_ASSERT_OK(LayerNorm(Context(), TestMatrix(x), TestMatrix(weight), TestMatrix(bias), kEps, y, mean.data(),
                              inv_std.data()));
      TestMatrix grad_x(size.rows, size.cols, DType::kF32, 5);
      TestMatrix grad_weight(DMatrix(1, size.cols));
      TestMatrix grad_bias(DMatrix(1, size.cols));
      QST_ASSERT_OK(LayerNormBackward(Context(), TestMatrix(grad_y), TestMatrix(x), TestMatrix(weight), mean.data(),
                                      inv_std.data(), grad_x, is_affine ? grad_weight.view() : MatrixView(),
                                      is_affine ? grad_bias.view() : MatrixView(), /*accumulate=*/false));
      EXPECT_TRUE(IsClose(grad_x, expected.x, 4.0 * Tolerance(size.cols)));
      if (is_affine) {
        EXPECT_TRUE(IsClose(grad_weight, expected.weight, 4.0 * Tolerance(size.rows + size.cols)));
        EXPECT_TRUE(IsClose(grad_bias, expected.bias, 4.0 * Tolerance(size.rows)));
      }
    }
  }
}

TEST_P(NormTest, OutputMayBeTheInput) {
  const DMatrix x = random_.NormalMatrix(5, 19);
  const DMatrix weight = random_.NormalMatrix(1, 19);
  TestMatrix apart(5, 19);
  QST_ASSERT_OK(RmsNorm(Context(), TestMatrix(x), TestMatrix(weight), kEps, apart, nullptr));
  TestMatrix in_place(x);
  QST_ASSERT_OK(RmsNorm(Context(), in_place, TestMatrix(weight), kEps, in_place, nullptr));
  EXPECT_EQ(in_place.Bits(), apart.Bits());
  QST_ASSERT_OK(
      LayerNorm(Context(), TestMatrix(x), TestMatrix(weight), TestMatrix(weight), kEps, apart, nullptr, nullptr));
  in_place = TestMatrix(x);
  QST_ASSERT_OK(
      LayerNorm(Context(), in_place, TestMatrix(weight), TestMatrix(weight), kEps, in_place, nullptr, nullptr));
  EXPECT_EQ(in_place.Bits(), apart.Bits());
}

TEST_P(NormTest, ThreadsAndOtherRowsChangeNoBit) {
  constexpr std::int64_t kRows = 1000;
  constexpr std::int64_t kCols = 100;
  const DMatrix x = random_.NormalMatrix(kRows, kCols);
  const DMatrix weight = random_.NormalMatrix(1, kCols);
  const DMatrix grad_y = random_.NormalMatrix(kRows, kCols);
  struct Outputs {
    TestMatrix y{kRows, kCols}, inv_rms{1, kRows}, grad_x{kRows, kCols}, grad_weight{DMatrix(1, kCols)};
    TestMatrix normed{kRows, kCols}, mean{1, kRows}, inv_std{1, kRows}, grad_n{kRows, kCols};
    TestMatrix grad_w{DMatrix(1, kCols)}, grad_b{DMatrix(1, kCols)};
  };
  std::vector<Outputs> outputs(3);
  const TestMatrix x_in(x);
  const TestMatrix w(weight);
  const TestMatrix g(grad_y);
  for (int threads = 1; threads <= 3; ++threads) {
    Outputs& o = outputs[threads - 1];
    const OpContext ctx = Context(threads);
    QST_ASSERT_OK(RmsNorm(ctx, x_in, w, kEps, o.y, o.inv_rms.data()));
    QST_ASSERT_OK(RmsNormBackward(ctx, g, x_in, w, o.inv_rms.data(), o.grad_x, o.grad_weight, false));
    QST_ASSERT_OK(LayerNorm(ctx, x_in, w, w, kEps, o.normed, o.mean.data(), o.inv_std.data()));
    QST_ASSERT_OK(
        LayerNormBackward(ctx, g, x_in, w, o.mean.data(), o.inv_std.data(), o.grad_n, o.grad_w, o.grad_b, false));
    EXPECT_EQ(o.y.Bits(), outputs[0].y.Bits());
    EXPECT_EQ(o.inv_rms.Bits(), outputs[0].inv_rms.Bits());
    EXPECT_EQ(o.grad_x.Bits(), outputs[0].grad_x.Bits());
    EXPECT_EQ(o.grad_weight.Bits(), outputs[0].grad_weight.Bits());
    EXPECT_EQ(o.normed.Bits(), outputs[0].normed.Bits());
    EXPECT_EQ(o.grad_n.Bits(), outputs[0].grad_n.Bits());
    EXPECT_EQ(o.grad_w.Bits(), outputs[0].grad_w.Bits());
    EXPECT_EQ(o.grad_b.Bits(), outputs[0].grad_b.Bits());
  }
  // A row by itself.
  TestMatrix alone(1, kCols);
  QST_ASSERT_OK(RmsNorm(Context(), Rows(x_in.view(), 777, 778), w, kEps, alone, nullptr));
  EXPECT_EQ(alone.Bits(), outputs[0].y.Bits(777, 778));
  QST_ASSERT_OK(LayerNorm(Context(), Rows(x_in.view(), 777, 778), w, w, kEps, alone, nullptr, nullptr));
  EXPECT_EQ(alone.Bits(), outputs[0].normed.Bits(777, 778));
}

TEST_P(NormTest, WhereOperandsLieChangesNoBit) {
  // Rows that one warp reduces, several, and that are longer than their threads hold.
  for (const std::int64_t cols : {8, 64, 2048, 16400}) {
    for (const DType dtype : OperandTypes()) {
      constexpr std::int64_t kRows = 5;
      const DMatrix x = random_.NormalMatrix(kRows, cols);
      const DMatrix weight = random_.NormalMatrix(1, cols);
      const DMatrix grad_y = random_.NormalMatrix(kRows, cols);
      struct Outputs {
        std::string rms, layer, grad_rms, grad_layer, grad_weight, grad_bias;
      };
      const auto run = [&](TestStart start, std::int64_t padding) {
        const auto in = [&](const DMatrix& values, DType type) { return TestMatrix(values, type, padding, start); };
        const auto out = [&](DType type) { return TestMatrix(kRows, cols, type, padding, start); };
        const TestMatrix x_in = in(x, dtype), w = in(weight, DType::kF32), g = in(grad_y, DType::kF32);
        TestMatrix rms = out(dtype), layer = out(dtype), grad_rms = out(DType::kF32), grad_layer = out(DType::kF32);
        TestMatrix inv_rms(1, kRows), mean(1, kRows), inv_std(1, kRows);
        TestMatrix grad_weight(DMatrix(1, cols)), grad_bias(DMatrix(1, cols));
        QST_EXPECT_OK(RmsNorm(Context(), x_in, w, kEps, rms, inv_rms.data()));
        QST_EXPECT_OK(LayerNorm(Context(), x_in, w, w, kEps, layer, mean.data(), inv_std.data()));
        QST_EXPECT_OK(
            RmsNormBackward(Context(), g, x_in, w, inv_rms.data(), grad_rms, MatrixView(), /*accumulate=*/false));
        if (dtype == DType::kF32 || IsCuda()) {
          QST_EXPECT_OK(LayerNormBackward(Context(), g, x_in, w, mean.data(), inv_std.data(), grad_layer, grad_weight,
                                          grad_bias, /*accumulate=*/false));
        }
        for (const TestMatrix* m : {&rms, &layer, &grad_rms, &grad_layer, &inv_rms, &mean, &inv_std}) {
          EXPECT_TRUE(m->GuardsIntact());
        }
        return Outputs{rms.Bits(),        layer.Bits(),       grad_rms.Bits(),
                       grad_layer.Bits(), grad_weight.Bits(), grad_bias.Bits()};
      };
      const Outputs expected = run(TestStart::kMisaligned, 0);
      for (const std::int64_t padding : {0, 8, 3}) {
        const Outputs actual = run(TestStart::kAligned, padding);
        EXPECT_EQ(actual.rms, expected.rms) << cols << " " << DTypeName(dtype) << " padding " << padding;
        EXPECT_EQ(actual.layer, expected.layer) << cols << " " << DTypeName(dtype) << " padding " << padding;
        EXPECT_EQ(actual.grad_rms, expected.grad_rms) << cols << " " << DTypeName(dtype) << " padding " << padding;
        EXPECT_EQ(actual.grad_layer, expected.grad_layer) << cols << " " << DTypeName(dtype) << " padding " << padding;
        EXPECT_EQ(actual.grad_weight, expected.grad_weight) << cols << " " << DTypeName(dtype);
        EXPECT_EQ(actual.grad_bias, expected.grad_bias) << cols << " " << DTypeName(dtype);
      }
    }
  }
}

TEST_P(NormTest, WeightAndBiasGradientsAreSkippedOneByOne) {
  const DMatrix x = random_.NormalMatrix(70, 12);
  const TestMatrix x_in(x), weight(random_.NormalMatrix(1, 12)), grad_y(random_.NormalMatrix(70, 12));
  TestMatrix y(70, 12), mean(1, 70), inv_std(1, 70), grad_x(70, 12);
  QST_ASSERT_OK(LayerNorm(Context(), x_in, weight, weight, kEps, y, mean.data(), inv_std.data()));
  const auto backward = [&](const MatrixView& grad_weight, const MatrixView& grad_bias) {
    QST_EXPECT_OK(LayerNormBackward(Context(), grad_y, x_in, weight, mean.data(), inv_std.data(), grad_x, grad_weight,
                                    grad_bias, /*accumulate=*/false));
  };
  TestMatrix both_weight(DMatrix(1, 12)), both_bias(DMatrix(1, 12));
  TestMatrix one_weight(DMatrix(1, 12)), one_bias(DMatrix(1, 12));
  backward(both_weight, both_bias);
  backward(one_weight, MatrixView());
  backward(MatrixView(), one_bias);
  EXPECT_EQ(one_weight.Bits(), both_weight.Bits());
  EXPECT_EQ(one_bias.Bits(), both_bias.Bits());
}

TEST_P(NormTest, AutoTakesTheBestInstructionSet) {
  const TestMatrix x(random_.NormalMatrix(4, 100));
  const TestMatrix weight(random_.NormalMatrix(1, 100));
  OpContext automatic = Context();
  automatic.isa = CpuIsa::kAuto;
  OpContext best = Context();
  best.isa = *ResolveIsa(CpuIsa::kAuto);
  TestMatrix expected(4, 100);
  TestMatrix actual(4, 100);
  QST_ASSERT_OK(RmsNorm(best, x, weight, kEps, expected, nullptr));
  QST_ASSERT_OK(RmsNorm(automatic, x, weight, kEps, actual, nullptr));
  EXPECT_EQ(actual.Bits(), expected.Bits());
}

TEST_P(NormTest, NanStaysInItsRow) {
  DMatrix x = random_.NormalMatrix(3, 20);
  x.at(1, 3) = std::numeric_limits<double>::quiet_NaN();
  const DMatrix weight = random_.NormalMatrix(1, 20);
  TestMatrix y(3, 20);
  QST_ASSERT_OK(RmsNorm(Context(), TestMatrix(x), TestMatrix(weight), kEps, y, nullptr));
  EXPECT_TRUE(IsClose(y, ReferenceRmsNorm(x, weight, kEpsWide), Tolerance(20)));
  QST_ASSERT_OK(LayerNorm(Context(), TestMatrix(x), TestMatrix(weight), TestMatrix(weight), kEps, y, nullptr, nullptr));
  EXPECT_TRUE(IsClose(y, ReferenceLayerNorm(x, weight, weight, kEpsWide), 2.0 * Tolerance(20)));
}

TEST_P(NormTest, RefusesOperandsThatDisagree) {
  const TestMatrix x(random_.NormalMatrix(3, 8));
  const TestMatrix weight(random_.NormalMatrix(1, 8));
  const TestMatrix short_weight(random_.NormalMatrix(1, 7));
  TestMatrix y(3, 8);
  TestMatrix wrong(2, 8);
  TestMatrix stats(DMatrix(1, 3));
  EXPECT_THAT(RmsNorm(Context(), x, short_weight, kEps, y, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight is [1, 7], need [1, 8]")));
  EXPECT_THAT(RmsNorm(Context(), x, weight, kEps, wrong, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("y is [2, 8], need [3, 8]")));
  EXPECT_THAT(RmsNorm(Context(), x, TestMatrix(random_.NormalMatrix(1, 8), DType::kF16), kEps, y, nullptr),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("weight is f16, need f32")));
  ConstMatrixView overlapping = x.view();
  overlapping.ld = 7;
  EXPECT_THAT(RmsNorm(Context(), overlapping, weight, kEps, y, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ld 7")));
  ConstMatrixView missing = x.view();
  missing.data = nullptr;
  EXPECT_THAT(RmsNorm(Context(), missing, weight, kEps, y, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("has no data")));
  EXPECT_THAT(RmsNormBackward(Context(), x, x, weight, nullptr, y, MatrixView(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("inv_rms is null")));
  EXPECT_THAT(RmsNormBackward(Context(), x, x, weight, stats.data(), y, wrong, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("grad_weight")));
  EXPECT_THAT(LayerNorm(Context(), x, weight, ConstMatrixView(), kEps, y, nullptr, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("both or neither")));
  EXPECT_THAT(LayerNormBackward(Context(), x, x, weight, stats.data(), nullptr, y, MatrixView(), MatrixView(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("inv_std is null")));
}

QST_INSTANTIATE_OP_TEST(NormTest);

}  // namespace
}  // namespace qst
