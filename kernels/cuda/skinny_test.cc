// Products of half-precision x with few float32 outputs, and their gradients (gemm/skinny.cuh), against float64.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/ops.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/reference_linear.h"
#include "kernels/testing/test_memory.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using testing_kernels::Bits;
using testing_kernels::DoubleMatrix;
using testing_kernels::ExpectIsProduct;
using testing_kernels::GuardedMatrix;
using testing_kernels::Start;
using testing_kernels::ToDouble;

class CudaSkinnyTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestCuda::StreamOrNull() == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
    ctx_ = OpContext{DeviceType::kCuda, nullptr, CpuIsa::kAuto, TestCuda::StreamOrNull()};
  }
  OpContext ctx_;
  std::mt19937 random_{7};
};

struct Shape {
  std::int64_t tokens, n, k;
};

// Rows and columns that tiles and steps do not divide, one chunk of tokens and several.
constexpr Shape kShapes[] = {
    {9, 1, 31},     {16, 3, 64},   {77, 16, 1000},  {513, 16, 4096}, {9, 40, 4096}, {1300, 64, 64},
    {77, 64, 1000}, {1300, 3, 31}, {513, 33, 1000}, {1300, 16, 264}, {16, 17, 8},
};

TEST_F(CudaSkinnyTest, ProductsMatchFloat64) {
  int variant = 0;
  for (const Shape& s : kShapes) {
    for (const DType x_dtype : {DType::kBF16, DType::kF16}) {
      const int v = variant++;
      const bool is_aligned = v % 3 != 2;
      const bool accumulate = v % 4 < 2;
      const bool has_bias = v % 5 < 3;
      SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", x "
                                      << DTypeName(x_dtype) << ", accumulate " << accumulate << ", bias " << has_bias
                                      << ", aligned " << is_aligned);
      ASSERT_TRUE(cuda::IsSkinnyProduct(x_dtype, false, DType::kF32, DType::kF32, s.n));
      const auto ld = [&](std::int64_t cols) { return is_aligned ? (cols + 7) / 8 * 8 + v % 2 * 8 : cols + v % 4; };
      GuardedMatrix x(x_dtype, s.tokens, s.k, ld(s.k), is_aligned ? 0 : 2 * (v % 7));
      // Of both factors, one may be aligned.
      GuardedMatrix w(DType::kF32, s.n, s.k, ld(s.k), v % 2 == 0 ? 0 : 4);
      GuardedMatrix y(DType::kF32, s.tokens, s.n, s.n + v % 3, 4 * (v % 5));
      GuardedMatrix bias(DType::kF32, 1, s.n, s.n, 4);
      for (GuardedMatrix* m : {&x, &w, &y, &bias}) m->FillNormal(&random_);
      const DoubleMatrix start = Start(accumulate ? &y : nullptr, has_bias ? &bias : nullptr, s.tokens, s.n);
      QST_ASSERT_OK(Linear(ctx_, x.view(), WeightView::Dense(w.view()), has_bias ? bias.view() : MatrixView{}, y.view(),
                           accumulate));
      ExpectIsProduct(ToDouble(x, s.tokens, s.k), ToDouble(w, s.n, s.k).Transposed(), start,
                      ToDouble(y, s.tokens, s.n));
      EXPECT_TRUE(y.GuardsAreIntact());
    }
  }
}

// Worst cases say little of a long sum: these are as close as float32 sums that are rounded at every step.
TEST_F(CudaSkinnyTest, ProductsAndGradientsAreAsExactAsFloat32) {
  constexpr std::int64_t kTokens = 512, kN = 16, kK = 4096;
  GuardedMatrix x(DType::kBF16, kTokens, kK, kK), w(DType::kF32, kN, kK, kK), y(DType::kF32, kTokens, kN, kN);
  GuardedMatrix grad_w(DType::kF32, kN, kK, kK);
  x.FillNormal(&random_);
  w.FillNormal(&random_);
  QST_ASSERT_OK(Linear(ctx_, x.view(), WeightView::Dense(w.view()), MatrixView{}, y.view(), false));
  QST_ASSERT_OK(LinearBackwardWeight(ctx_, y.view(), x.view(), grad_w.view(), MatrixView{}, false));
  ASSERT_TRUE(SynchronizeTestDevice());
  // Root mean square error, of results by theirs.
  const auto expect_close = [](const char* what, std::int64_t rows, std::int64_t cols, std::int64_t terms,
                               const auto& left, const auto& right, const GuardedMatrix& actual) {
    double square = 0.0, error = 0.0, float_error = 0.0;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) {
        double expected = 0.0;
        float in_float = 0.0f;
        for (std::int64_t k = 0; k < terms; ++k) {
          expected += static_cast<double>(left(i, k)) * static_cast<double>(right(k, j));
          in_float = std::fma(left(i, k), right(k, j), in_float);
        }
        square += expected * expected;
        error += std::pow(actual.Get(i, j) - expected, 2);
        float_error += std::pow(in_float - expected, 2);
      }
    }
    EXPECT_LE(std::sqrt(error / square), 1.5 * std::sqrt(float_error / square)) << what;
    EXPECT_GT(square, 0.0);
  };
  expect_close(
      "product", 40, kN, kK, [&](std::int64_t i, std::int64_t k) { return x.Get(i, k); },
      [&](std::int64_t k, std::int64_t j) { return w.Get(j, k); }, y);
  expect_close(
      "gradient", kN, 40, kTokens, [&](std::int64_t i, std::int64_t t) { return y.Get(t, i); },
      [&](std::int64_t t, std::int64_t j) { return x.Get(t, j); }, grad_w);
}

TEST_F(CudaSkinnyTest, AProductsRowDependsOnNoOther) {
  constexpr std::int64_t kTokens = 9000, kK = 200;
  for (const std::int64_t n : {16, 40}) {
    GuardedMatrix x(DType::kF16, kTokens, kK, kK), w(DType::kF32, n, kK, kK), whole(DType::kF32, kTokens, n, n);
    x.FillNormal(&random_);
    w.FillNormal(&random_);
    x.Set(5, 7, std::numeric_limits<float>::quiet_NaN());
    x.Set(77, 199, std::numeric_limits<float>::infinity());
    QST_ASSERT_OK(Linear(ctx_, x.view(), WeightView::Dense(w.view()), MatrixView{}, whole.view(), false));
    for (const auto& [begin, end] : {std::pair<int, int>{6, 15}, {8983, 9000}, {61, 77}, {78, 200}, {3000, 5500}}) {
      GuardedMatrix part(DType::kF32, end - begin, n, n);
      QST_ASSERT_OK(
          Linear(ctx_, Rows(x.view(), begin, end), WeightView::Dense(w.view()), MatrixView{}, part.view(), false));
      for (int i = begin; i < end; ++i) ASSERT_EQ(Bits(part, i - begin, n), Bits(whole, i, n)) << "row " << i;
    }
    for (std::int64_t j = 0; j < n; ++j) {
      EXPECT_TRUE(std::isnan(whole.Get(5, j)));
      EXPECT_FALSE(std::isfinite(whole.Get(77, j)));
      EXPECT_TRUE(std::isfinite(whole.Get(4, j)) && std::isfinite(whole.Get(6, j)) && std::isfinite(whole.Get(78, j)));
    }
  }
}

TEST_F(CudaSkinnyTest, GradientsMatchFloat64) {
  int variant = 0;
  for (const Shape& s : kShapes) {
    for (const DType x_dtype : {DType::kBF16, DType::kF16}) {
      const int v = variant++;
      const bool is_aligned = v % 3 != 1;
      const bool accumulate = v % 4 < 2;
      SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", x "
                                      << DTypeName(x_dtype) << ", accumulate " << accumulate << ", aligned "
                                      << is_aligned);
      ASSERT_TRUE(cuda::IsSkinnyGrad(x_dtype, s.n));
      const auto ld = [&](std::int64_t cols) { return is_aligned ? (cols + 7) / 8 * 8 + v % 2 * 8 : cols + v % 4; };
      GuardedMatrix grad_y(DType::kF32, s.tokens, s.n, s.n + v % 3, 4 * (v % 5));
      GuardedMatrix x(x_dtype, s.tokens, s.k, ld(s.k), is_aligned ? 0 : 2 * (v % 7));
      GuardedMatrix grad_w(DType::kF32, s.n, s.k, ld(s.k), 4 * (v % 3));
      for (GuardedMatrix* m : {&x, &grad_y, &grad_w}) m->FillNormal(&random_);
      const DoubleMatrix start = Start(accumulate ? &grad_w : nullptr, nullptr, s.n, s.k);
      QST_ASSERT_OK(LinearBackwardWeight(ctx_, grad_y.view(), x.view(), grad_w.view(), MatrixView{}, accumulate));
      ExpectIsProduct(ToDouble(grad_y, s.tokens, s.n).Transposed(), ToDouble(x, s.tokens, s.k), start,
                      ToDouble(grad_w, s.n, s.k));
      EXPECT_TRUE(grad_w.GuardsAreIntact());
    }
  }
}

// As in micro-batches whose shape was rounded up, within a chunk of tokens and into the next.
TEST_F(CudaSkinnyTest, RowsOfZerosChangeNoBitOfAGradient) {
  constexpr std::int64_t kTokens = 1100, kN = 19, kK = 72;
  GuardedMatrix grad_y(DType::kF32, kTokens, kN, kN), x(DType::kBF16, kTokens, kK, kK);
  grad_y.FillNormal(&random_);
  x.FillNormal(&random_);
  const auto gradient = [&](std::int64_t tokens) {
    auto grad_w = std::make_unique<GuardedMatrix>(DType::kF32, kN, kK, kK);
    QST_EXPECT_OK(LinearBackwardWeight(ctx_, Rows(grad_y.view(), 0, tokens), Rows(x.view(), 0, tokens), grad_w->view(),
                                       MatrixView{}, false));
    return grad_w;
  };
  for (const std::int64_t tokens : {900, 500, 37}) {
    EXPECT_TRUE(SynchronizeTestDevice());
    for (std::int64_t i = tokens; i < kTokens; ++i) {
      for (std::int64_t j = 0; j < kN; ++j) grad_y.Set(i, j, 0.0f);
    }
    const auto expected = gradient(tokens);
    for (const std::int64_t padded : {tokens + 1, tokens + 27, std::int64_t{1100}}) {
      const auto actual = gradient(padded);
      for (std::int64_t i = 0; i < kN; ++i) {
        ASSERT_EQ(Bits(*actual, i, kK), Bits(*expected, i, kK)) << "row " << i << ", " << tokens << " of " << padded;
      }
    }
  }
}

}  // namespace
}  // namespace qst
