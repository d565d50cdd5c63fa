#include "kernels/cpu/gemm/linear.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/gemm/gemm.h"
#include "kernels/quant/quant4.h"
#include "kernels/testing/reference_linear.h"
#include "kernels/testing/test_weight.h"

namespace qst {
namespace {

using testing_kernels::Bits;
using testing_kernels::DoubleMatrix;
using testing_kernels::ExpectIsProduct;
using testing_kernels::GuardedMatrix;
using testing_kernels::IsQuantized;
using testing_kernels::Start;
using testing_kernels::TestWeight;
using testing_kernels::ToDouble;
using testing_kernels::WeightKind;
using testing_kernels::WeightKindName;

const cpu::GemmKernels* KernelsOrNull(const std::string& name) {
  if (name == "portable") return &cpu::kPortableGemmKernels;
  if (!ResolveIsa(CpuIsa::kAvx2).ok()) return nullptr;
  if (name == "avx2") return &cpu::kAvx2GemmKernels;
  return cpu::HasAvx512() ? &cpu::kAvx512GemmKernels : nullptr;
}

class LinearTest : public testing::TestWithParam<std::tuple<const char*, WeightKind>> {
 protected:
  void SetUp() override {
    kernels_ = KernelsOrNull(std::get<0>(GetParam()));
    if (kernels_ == nullptr) GTEST_SKIP() << "this machine has no " << std::get<0>(GetParam());
  }
  WeightKind kind() const { return std::get<1>(GetParam()); }

  const cpu::GemmKernels* kernels_ = nullptr;
  ThreadPool threads_{2};
  std::mt19937 random_{20240116};
};

INSTANTIATE_TEST_SUITE_P(
    All, LinearTest,
    testing::Combine(testing::Values("portable", "avx2", "avx512"),
                     testing::Values(WeightKind::kF32, WeightKind::kF16, WeightKind::kBF16, WeightKind::kNF4,
                                     WeightKind::kFP4, WeightKind::kNF4Plain)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) + "_" + WeightKindName(std::get<1>(info.param));
    });

struct Shape {
  std::int64_t tokens, n, k;
  int block_size;
};

// Empty, single, ragged; blocks of 4 bits inside rows and across rows; odd numbers of columns; several
// blocks of k, several tasks.
constexpr Shape kShapes[] = {
    {0, 5, 7, 64},     {3, 0, 7, 64},      {3, 5, 0, 64},      {1, 1, 1, 64},      {2, 3, 5, 64},
    {1, 64, 64, 64},   {5, 33, 64, 64},    {7, 17, 63, 64},    {13, 31, 65, 128},  {64, 48, 128, 128},
    {25, 70, 192, 64}, {12, 100, 172, 64}, {40, 16, 832, 64},  {300, 40, 31, 64},  {25, 100, 1664, 128},
    {4, 9, 4096, 4096}, {6, 20, 1000, 256}, {259, 65, 129, 64}, {90, 300, 160, 64},
};

TEST_P(LinearTest, ForwardMatchesFloat64) {
  int shape_number = 0;
  int variant = 0;
  for (const Shape& s : kShapes) {
    const bool is_odd = ++shape_number % 2 == 1;
    for (const DType x_dtype : {DType::kF32, is_odd ? DType::kF16 : DType::kBF16}) {
      // Each combination of these comes up with each dtype over the list of shapes.
      ++variant;
      const bool accumulate = variant % 4 < 2;
      const bool has_bias = variant % 8 < 4;
      SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", block "
                                      << s.block_size << ", x " << DTypeName(x_dtype) << ", accumulate " << accumulate
                                      << ", bias " << has_bias);
      GuardedMatrix x(x_dtype, s.tokens, s.k, s.k + variant % 3, x_dtype == DType::kF32 ? 4 * (variant % 5) : variant % 5);
      GuardedMatrix y(DType::kF32, s.tokens, s.n, s.n + variant % 4, 4 * (variant % 7));
      GuardedMatrix bias(DType::kF32, 1, s.n, s.n, 4);
      TestWeight w(kind(), s.n, s.k, s.block_size, &random_);
      x.FillNormal(&random_);
      y.FillNormal(&random_);
      bias.FillNormal(&random_);
      const DoubleMatrix start = Start(accumulate ? &y : nullptr, has_bias ? &bias : nullptr, s.tokens, s.n);
      cpu::Linear(&threads_, *kernels_, x.view(), w.view(), has_bias ? bias.view() : MatrixView{}, y.view(),
                  accumulate);
      ExpectIsProduct(ToDouble(x, s.tokens, s.k), w.values().Transposed(), start, ToDouble(y, s.tokens, s.n));
      EXPECT_TRUE(y.GuardsAreIntact());
    }
  }
}

TEST_P(LinearTest, BackwardInputMatchesFloat64) {
  int variant = 0;
  for (const Shape& s : kShapes) {
    const bool accumulate = ++variant % 2 == 0;
    SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", accumulate "
                                    << accumulate);
    GuardedMatrix grad_y(DType::kF32, s.tokens, s.n, s.n + variant % 3, 4 * (variant % 5));
    GuardedMatrix grad_x(DType::kF32, s.tokens, s.k, s.k + variant % 4, 4 * (variant % 7));
    TestWeight w(kind(), s.n, s.k, s.block_size, &random_);
    grad_y.FillNormal(&random_);
    grad_x.FillNormal(&random_);
    const DoubleMatrix start = Start(accumulate ? &grad_x : nullptr, nullptr, s.tokens, s.k);
    cpu::LinearBackwardInput(&threads_, *kernels_, grad_y.view(), w.view(), grad_x.view(), accumulate);
    ExpectIsProduct(ToDouble(grad_y, s.tokens, s.n), w.values(), start, ToDouble(grad_x, s.tokens, s.k));
    EXPECT_TRUE(grad_x.GuardsAreIntact());
  }
}

TEST_P(LinearTest, BackwardWeightMatchesFloat64) {
  if (IsQuantized(kind())) GTEST_SKIP() << "x is never 4 bit";
  const DType x_dtype = kind() == WeightKind::kF16    ? DType::kF16
                        : kind() == WeightKind::kBF16 ? DType::kBF16
                                                      : DType::kF32;
  int variant = 0;
  for (const Shape& s : kShapes) {
    for (const bool accumulate : {false, true}) {
      const bool has_bias = ++variant % 3 != 0;
      SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", accumulate "
                                      << accumulate);
      GuardedMatrix grad_y(DType::kF32, s.tokens, s.n, s.n + variant % 3, 4 * (variant % 5));
      GuardedMatrix x(x_dtype, s.tokens, s.k, s.k + variant % 2, x_dtype == DType::kF32 ? 4 : 1);
      GuardedMatrix grad_w(DType::kF32, s.n, s.k, s.k + variant % 4, 4 * (variant % 7));
      GuardedMatrix grad_bias(DType::kF32, 1, s.n, s.n, 4);
      grad_y.FillNormal(&random_);
      x.FillNormal(&random_);
      grad_w.FillNormal(&random_);
      grad_bias.FillNormal(&random_);
      const DoubleMatrix start = Start(accumulate ? &grad_w : nullptr, nullptr, s.n, s.k);
      const DoubleMatrix bias_start = Start(accumulate ? &grad_bias : nullptr, nullptr, 1, s.n);
      cpu::LinearBackwardWeight(&threads_, *kernels_, grad_y.view(), x.view(), grad_w.view(),
                                has_bias ? grad_bias.view() : MatrixView{}, accumulate);
      const DoubleMatrix dy = ToDouble(grad_y, s.tokens, s.n);
      ExpectIsProduct(dy.Transposed(), ToDouble(x, s.tokens, s.k), start, ToDouble(grad_w, s.n, s.k));
      EXPECT_TRUE(grad_w.GuardsAreIntact());
      if (has_bias) {
        const DoubleMatrix ones{1, s.tokens, std::vector<double>(s.tokens, 1.0)};
        ExpectIsProduct(ones, dy, bias_start, ToDouble(grad_bias, 1, s.n));
      }
      EXPECT_TRUE(grad_bias.GuardsAreIntact());
    }
  }
}

TEST_P(LinearTest, ARowHasTheSameBitsAloneAndInAnyBatchWithAnyNumberOfThreads) {
  // 1728 columns: several blocks of k, cut differently for one row and for many.
  constexpr std::int64_t kTokens = 333, kN = 45, kK = 1728;
  TestWeight w(kind(), kN, kK, 64, &random_);
  GuardedMatrix x(DType::kF32, kTokens, kK, kK);
  GuardedMatrix bias(DType::kF32, 1, kN, kN);
  GuardedMatrix whole(DType::kF32, kTokens, kN, kN);
  x.FillNormal(&random_);
  bias.FillNormal(&random_);
  cpu::Linear(&threads_, *kernels_, x.view(), w.view(), bias.view(), whole.view(), false);
  for (const int num_threads : {1, 2, 3}) {
    ThreadPool threads(num_threads);
    GuardedMatrix again(DType::kF32, kTokens, kN, kN);
    cpu::Linear(&threads, *kernels_, x.view(), w.view(), bias.view(), again.view(), false);
    for (std::int64_t i = 0; i < kTokens; ++i) ASSERT_EQ(Bits(again, i, kN), Bits(whole, i, kN)) << "row " << i;
    for (const auto& [begin, end] : {std::pair<int, int>{0, 1}, {332, 333}, {5, 7}, {100, 105}, {200, 240}}) {
      GuardedMatrix part(DType::kF32, end - begin, kN, kN);
      cpu::Linear(&threads, *kernels_, Rows(x.view(), begin, end), w.view(), bias.view(), part.view(), false);
      for (std::int64_t i = begin; i < end; ++i) {
        ASSERT_EQ(Bits(part, i - begin, kN), Bits(whole, i, kN)) << "row " << i << " of " << begin << "-" << end;
      }
    }
  }
}

TEST_P(LinearTest, BackwardBitsDependOnNeitherThreadsNorMicroBatches) {
  constexpr std::int64_t kTokens = 500, kN = 65, kK = 128;
  TestWeight w(kind(), kN, kK, 64, &random_);
  GuardedMatrix x(DType::kF32, kTokens, kK, kK);
  GuardedMatrix grad_y(DType::kF32, kTokens, kN, kN);
  x.FillNormal(&random_);
  grad_y.FillNormal(&random_);
  GuardedMatrix grad_x(DType::kF32, kTokens, kK, kK), grad_w(DType::kF32, kN, kK, kK), grad_b(DType::kF32, 1, kN, kN);
  cpu::LinearBackwardInput(&threads_, *kernels_, grad_y.view(), w.view(), grad_x.view(), false);
  cpu::LinearBackwardWeight(&threads_, *kernels_, grad_y.view(), x.view(), grad_w.view(), grad_b.view(), false);
  for (const int num_threads : {1, 3}) {
    ThreadPool threads(num_threads);
    GuardedMatrix part_x(DType::kF32, kTokens, kK, kK), part_w(DType::kF32, kN, kK, kK), part_b(DType::kF32, 1, kN, kN);
    bool accumulate = false;
    for (const auto& [begin, end] : {std::pair<int, int>{0, 1}, {1, 300}, {300, 500}}) {
      cpu::LinearBackwardInput(&threads, *kernels_, Rows(grad_y.view(), begin, end), w.view(),
                               Rows(part_x.view(), begin, end), false);
      cpu::LinearBackwardWeight(&threads, *kernels_, Rows(grad_y.view(), begin, end), Rows(x.view(), begin, end),
                                part_w.view(), part_b.view(), accumulate);
      accumulate = true;
    }
    for (std::int64_t i = 0; i < kTokens; ++i) ASSERT_EQ(Bits(part_x, i, kK), Bits(grad_x, i, kK)) << "row " << i;
    for (std::int64_t i = 0; i < kN; ++i) ASSERT_EQ(Bits(part_w, i, kK), Bits(grad_w, i, kK)) << "row " << i;
    ASSERT_EQ(Bits(part_b, 0, kN), Bits(grad_b, 0, kN));
  }
}

TEST_P(LinearTest, NanAndInfinityStayInTheirRowAndColumn) {
  constexpr std::int64_t kTokens = 20, kN = 37, kK = 128;
  TestWeight w(kind(), kN, kK, 64, &random_);
  GuardedMatrix x(DType::kF32, kTokens, kK, kK), y(DType::kF32, kTokens, kN, kN), clean(DType::kF32, kTokens, kN, kN);
  x.FillNormal(&random_);
  cpu::Linear(&threads_, *kernels_, x.view(), w.view(), MatrixView{}, clean.view(), false);
  x.Set(13, 5, std::numeric_limits<float>::quiet_NaN());
  x.Set(19, 127, std::numeric_limits<float>::infinity());
  cpu::Linear(&threads_, *kernels_, x.view(), w.view(), MatrixView{}, y.view(), false);
  for (std::int64_t i = 0; i < kTokens; ++i) {
    for (std::int64_t j = 0; j < kN; ++j) {
      if (i == 13) {
        EXPECT_TRUE(std::isnan(y.Get(i, j)));
      } else if (i == 19) {
        EXPECT_FALSE(std::isfinite(y.Get(i, j)));
      } else {
        EXPECT_EQ(y.Get(i, j), clean.Get(i, j));
      }
    }
  }
}

TEST(GemmKernelsTest, Avx512HasTheBitsOfAvx2) {
  if (KernelsOrNull("avx512") == nullptr) GTEST_SKIP() << "this machine has no AVX-512";
  ThreadPool threads(2);
  std::mt19937 random(7);
  for (const WeightKind kind : {WeightKind::kF32, WeightKind::kF16, WeightKind::kBF16, WeightKind::kNF4,
                                WeightKind::kFP4}) {
    constexpr std::int64_t kTokens = 50, kN = 75, kK = 1600;
    TestWeight w(kind, kN, kK, 64, &random);
    GuardedMatrix x(DType::kF32, kTokens, kK, kK), grad_y(DType::kF32, kTokens, kN, kN);
    x.FillNormal(&random);
    grad_y.FillNormal(&random);
    GuardedMatrix y2(DType::kF32, kTokens, kN, kN), y512(DType::kF32, kTokens, kN, kN);
    GuardedMatrix grad_x2(DType::kF32, kTokens, kK, kK), grad_x512(DType::kF32, kTokens, kK, kK);
    GuardedMatrix grad_w2(DType::kF32, kN, kK, kK), grad_w512(DType::kF32, kN, kK, kK);
    const auto run = [&](const cpu::GemmKernels& kernels, GuardedMatrix* y, GuardedMatrix* grad_x,
                         GuardedMatrix* grad_w) {
      cpu::Linear(&threads, kernels, x.view(), w.view(), MatrixView{}, y->view(), false);
      cpu::LinearBackwardInput(&threads, kernels, grad_y.view(), w.view(), grad_x->view(), false);
      cpu::LinearBackwardWeight(&threads, kernels, grad_y.view(), x.view(), grad_w->view(), MatrixView{}, false);
    };
    run(cpu::kAvx2GemmKernels, &y2, &grad_x2, &grad_w2);
    run(cpu::kAvx512GemmKernels, &y512, &grad_x512, &grad_w512);
    for (std::int64_t i = 0; i < kTokens; ++i) {
      ASSERT_EQ(Bits(y2, i, kN), Bits(y512, i, kN));
      ASSERT_EQ(Bits(grad_x2, i, kK), Bits(grad_x512, i, kK));
    }
    for (std::int64_t i = 0; i < kN; ++i) ASSERT_EQ(Bits(grad_w2, i, kK), Bits(grad_w512, i, kK));
  }
}

// Exact sums of small integers: element (i, k) of A and (j, k) of B.
float Small(std::int64_t i, std::int64_t k) { return static_cast<float>((i + k) % 5 - 2); }
float Little(std::int64_t j, std::int64_t k) { return static_cast<float>((j + 3 * k) % 7 - 3); }
float SmallTimesLittle(std::int64_t i, std::int64_t j, std::int64_t depth) {
  float sum = 0.0f;
  for (std::int64_t k = 0; k < depth; ++k) sum += Small(i, k) * Little(j, k);
  return sum;
}

// 16-bit rows are converted a chunk of rows at a time where several tasks share them.
TEST(GemmTest, ChunksOfConvertedRowsAddUp) {
  constexpr std::int64_t kTokens = 2000, kN = 100, kK = 5000;
  GuardedMatrix x(DType::kBF16, kTokens, kK, kK), w(DType::kF32, kN, kK, kK), y(DType::kF32, kTokens, kN, kN);
  for (std::int64_t i = 0; i < kTokens; ++i) {
    for (std::int64_t k = 0; k < kK; ++k) x.Set(i, k, Small(i, k));
  }
  for (std::int64_t j = 0; j < kN; ++j) {
    for (std::int64_t k = 0; k < kK; ++k) w.Set(j, k, Little(j, k));
  }
  ThreadPool threads(2);
  cpu::Linear(&threads, cpu::GemmKernelsFor(*ResolveIsa(CpuIsa::kAuto)), x.view(), WeightView::Dense(w.view()),
              MatrixView{}, y.view(), false);
  for (const std::int64_t i : {0, 1, 837, 838, 839, 845, 1675, 1676, 1999}) {
    for (std::int64_t j = 0; j < kN; ++j) EXPECT_EQ(y.Get(i, j), SmallTimesLittle(i, j, kK)) << i << ", " << j;
  }
}

// A long gradient is packed a chunk of its columns at a time.
TEST(GemmTest, ChunksOfPackedColumnsAddUp) {
  constexpr std::int64_t kTokens = 8400, kN = 530, kK = 100;
  GuardedMatrix x(DType::kF32, kTokens, kK, kK), grad_y(DType::kF32, kTokens, kN, kN), grad_w(DType::kF32, kN, kK, kK);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t i = 0; i < kN; ++i) grad_y.Set(t, i, Small(i, t));
    for (std::int64_t j = 0; j < kK; ++j) x.Set(t, j, Little(j, t));
  }
  ThreadPool threads(2);
  cpu::LinearBackwardWeight(&threads, cpu::GemmKernelsFor(*ResolveIsa(CpuIsa::kAuto)), grad_y.view(), x.view(),
                            grad_w.view(), MatrixView{}, false);
  for (const std::int64_t i : {0, 1, 11, 12, 503, 504, 511, 512, 515, 516, 529}) {
    for (std::int64_t j = 0; j < kK; ++j) EXPECT_EQ(grad_w.Get(i, j), SmallTimesLittle(i, j, kTokens)) << i << ", " << j;
  }
}

}  // namespace
}  // namespace qst
