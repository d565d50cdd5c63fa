// Linear layers on CUDA against float64, in every mix of types, shapes and addresses. What CPU and CUDA share is in
// kernels/ops_linear_test.cc.
#include "kernels/cuda/linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/device_memory.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/reference_linear.h"
#include "kernels/testing/test_memory.h"
#include "kernels/testing/test_quant4.h"
#include "kernels/testing/test_weight.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using testing_kernels::Bits;
using testing_kernels::DoubleMatrix;
using testing_kernels::ExpectIsProduct;
using testing_kernels::GuardedMatrix;
using testing_kernels::IsQuantized;
using testing_kernels::ProductTolerance;
using testing_kernels::Start;
using testing_kernels::TestWeight;
using testing_kernels::ToDouble;
using testing_kernels::WeightDType;
using testing_kernels::WeightKind;
using testing_kernels::WeightKindName;
using testing_kernels::WeightPlace;

constexpr DType kFloatTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
// Tensor cores may cut off where float32 rounds, and add in groups of their own.
constexpr double kTensorCoreSums = 4.0;

// Half a unit in the last place, relative.
double RoundingError(DType dtype) {
  return dtype == DType::kBF16 ? std::ldexp(1.0, -8) : dtype == DType::kF16 ? std::ldexp(1.0, -11) : 0.0;
}

DoubleMatrix Rounded(DoubleMatrix m, DType dtype) {
  for (double& value : m.values) {
    const float narrow = static_cast<float>(value);
    if (dtype == DType::kBF16) value = BF16ToF32(F32ToBF16(narrow));
    if (dtype == DType::kF16) value = F16ToF32(F32ToF16(narrow));
  }
  return m;
}

struct Shape {
  std::int64_t tokens, n, k;
  int block_size;
};

class CudaLinearTest : public testing::TestWithParam<WeightKind> {
 protected:
  void SetUp() override {
    if (TestCuda::StreamOrNull() == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
    ctx_ = OpContext{DeviceType::kCuda, nullptr, CpuIsa::kAuto, TestCuda::StreamOrNull()};
  }
  WeightKind kind() const { return GetParam(); }

  // Forward of one shape with every type of x and, in turn, of y, at addresses that a number decides.
  void ExpectForwardMatches(const Shape& s, int* variant);

  OpContext ctx_;
  std::mt19937 random_{20240116};
};

INSTANTIATE_TEST_SUITE_P(Weights, CudaLinearTest,
                         testing::Values(WeightKind::kF32, WeightKind::kF16, WeightKind::kBF16, WeightKind::kNF4,
                                         WeightKind::kFP4, WeightKind::kNF4Plain),
                         [](const auto& info) { return std::string(WeightKindName(info.param)); });

void CudaLinearTest::ExpectForwardMatches(const Shape& s, int* variant) {
  for (const DType x_dtype : kFloatTypes) {
    const int v = (*variant)++;
    const DType y_dtype = kFloatTypes[v / 2 % 3];
    const bool is_aligned = v % 2 == 0;
    const bool accumulate = v % 4 < 2;
    const bool has_bias = v % 8 < 5;
    SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", block " << s.block_size
                                    << ", x " << DTypeName(x_dtype) << ", y " << DTypeName(y_dtype) << ", accumulate "
                                    << accumulate << ", bias " << has_bias << ", aligned " << is_aligned);
    const auto ld = [&](std::int64_t cols) { return is_aligned ? (cols + 7) / 8 * 8 + v % 3 * 8 : cols + v % 3; };
    const auto misalign = [&](DType dtype) { return is_aligned ? 0 : DTypeBytes(dtype) * (v % 5); };
    GuardedMatrix x(x_dtype, s.tokens, s.k, ld(s.k), misalign(x_dtype));
    GuardedMatrix y(y_dtype, s.tokens, s.n, ld(s.n), misalign(y_dtype));
    GuardedMatrix bias(DType::kF32, 1, s.n, s.n, misalign(DType::kF32));
    TestWeight w(kind(), s.n, s.k, s.block_size, &random_, is_aligned ? WeightPlace::kVectors : WeightPlace::kElements);
    x.FillNormal(&random_);
    y.FillNormal(&random_);
    bias.FillNormal(&random_);
    const DoubleMatrix start = Start(accumulate ? &y : nullptr, has_bias ? &bias : nullptr, s.tokens, s.n);
    QST_ASSERT_OK(Linear(ctx_, x.view(), w.view(), has_bias ? bias.view() : MatrixView{}, y.view(), accumulate));

    const bool is_few = s.tokens <= cuda::kMaxFewTokens;
    const DType factor =
        is_few ? DType::kF32 : cuda::LinearComputeType(x_dtype, IsQuantized(kind()), WeightDType(kind()));
    ProductTolerance tolerance;
    tolerance.sums = kTensorCoreSums;
    tolerance.result = RoundingError(y_dtype);
    // A product with a result of a half type takes its bias in that type; and what a bias is added to may have been
    // rounded to it, by as much again as the bias and what it cancels.
    for (std::int64_t j = 0; has_bias && !is_few && j < s.n; ++j) {
      const double rounding = RoundingError(y_dtype) * std::fabs(bias.Get(0, j));
      tolerance.absolute = std::max(tolerance.absolute, (accumulate ? 2.0 : 1.0) * rounding);
    }
    if (has_bias && accumulate && !is_few) tolerance.result *= 2.0;
    ExpectIsProduct(Rounded(ToDouble(x, s.tokens, s.k), factor), Rounded(w.values(), factor).Transposed(), start,
                    ToDouble(y, s.tokens, s.n), tolerance);
    EXPECT_TRUE(y.GuardsAreIntact());
  }
}

// Single elements, whole words of codes and not, blocks across rows, several staged pieces of x.
TEST_P(CudaLinearTest, FewTokensMatchFloat64) {
  constexpr Shape kShapes[] = {
      {1, 1, 1, 64},     {2, 3, 5, 64},     {5, 17, 63, 64},   {8, 33, 64, 64},    {3, 9, 96, 64},
      {4, 40, 1024, 64}, {7, 70, 1056, 64}, {1, 9, 17000, 64}, {8, 10, 2049, 128}, {2, 5, 4096, 4096},
      {6, 130, 31, 64},  {0, 5, 7, 64},     {3, 0, 7, 64},     {1, 200, 96, 64},   {2, 170, 64, 64},
  };
  int variant = 0;
  for (const Shape& shape : kShapes) ExpectForwardMatches(shape, &variant);
}

TEST_P(CudaLinearTest, ManyTokensMatchFloat64) {
  constexpr Shape kShapes[] = {
      {9, 1, 1, 64},     {12, 3, 5, 64},     {13, 31, 65, 128},  {64, 48, 128, 128}, {25, 70, 192, 64},
      {100, 40, 31, 64}, {17, 9, 1000, 256}, {259, 65, 129, 64}, {90, 300, 160, 64}, {300, 8, 8, 64},
  };
  int variant = 0;
  for (const Shape& shape : kShapes) ExpectForwardMatches(shape, &variant);
}

TEST_P(CudaLinearTest, BackwardInputMatchesFloat64) {
  constexpr Shape kShapes[] = {
      {0, 5, 7, 64},      {1, 1, 1, 64},     {2, 3, 5, 64},     {3, 5, 0, 64},      {5, 33, 64, 64},    {7, 17, 63, 64},
      {64, 48, 128, 128}, {25, 70, 192, 64}, {40, 16, 832, 64}, {259, 65, 129, 64}, {90, 300, 160, 64},
  };
  int variant = 0;
  for (const Shape& s : kShapes) {
    for (const bool accumulate : {false, true}) {
      const int v = variant++;
      const bool is_aligned = v % 3 != 0;
      SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", accumulate "
                                      << accumulate << ", aligned " << is_aligned);
      const auto ld = [&](std::int64_t cols) { return is_aligned ? (cols + 3) / 4 * 4 + v % 2 * 4 : cols + v % 4; };
      GuardedMatrix grad_y(DType::kF32, s.tokens, s.n, ld(s.n), is_aligned ? 0 : 4 * (v % 5));
      GuardedMatrix grad_x(DType::kF32, s.tokens, s.k, ld(s.k), is_aligned ? 0 : 4 * (v % 7));
      TestWeight w(kind(), s.n, s.k, s.block_size, &random_,
                   is_aligned ? WeightPlace::kVectors : WeightPlace::kElements);
      grad_y.FillNormal(&random_);
      grad_x.FillNormal(&random_);
      const DoubleMatrix start = Start(accumulate ? &grad_x : nullptr, nullptr, s.tokens, s.k);
      QST_ASSERT_OK(LinearBackwardInput(ctx_, grad_y.view(), w.view(), grad_x.view(), accumulate));
      const DType factor = cuda::LinearBackwardComputeType(IsQuantized(kind()), WeightDType(kind()));
      ProductTolerance tolerance;
      tolerance.sums = kTensorCoreSums;
      ExpectIsProduct(Rounded(ToDouble(grad_y, s.tokens, s.n), factor), Rounded(w.values(), factor), start,
                      ToDouble(grad_x, s.tokens, s.k), tolerance);
      EXPECT_TRUE(grad_x.GuardsAreIntact());
    }
  }
}

TEST_P(CudaLinearTest, ATokenHasTheSameBitsAmongFewOthersAndAmongManyOthers) {
  constexpr std::int64_t kTokens = 150, kN = 48, kK = 1184;
  for (const bool is_aligned : {true, false}) {
    TestWeight w(kind(), kN, kK, 64, &random_, is_aligned ? WeightPlace::kVectors : WeightPlace::kElements);
    GuardedMatrix x(DType::kBF16, kTokens, kK, kK + (is_aligned ? 0 : 1));
    GuardedMatrix bias(DType::kF32, 1, kN, kN);
    x.FillNormal(&random_);
    bias.FillNormal(&random_);
    const auto run = [&](std::int64_t begin, std::int64_t end, DType y_dtype) {
      auto y = std::make_unique<GuardedMatrix>(y_dtype, end - begin, kN, kN);
      QST_EXPECT_OK(Linear(ctx_, Rows(x.view(), begin, end), w.view(), bias.view(), y->view(), false));
      return y;
    };
    for (const DType y_dtype : {DType::kF32, DType::kBF16}) {
      const auto whole = run(0, kTokens, y_dtype);
      const auto again = run(0, kTokens, y_dtype);
      for (std::int64_t i = 0; i < kTokens; ++i) ASSERT_EQ(Bits(*again, i, kN), Bits(*whole, i, kN)) << "row " << i;
      for (const auto& [begin, end] : {std::pair<int, int>{0, 9}, {5, 15}, {141, 150}, {20, 120}}) {
        const auto part = run(begin, end, y_dtype);
        for (std::int64_t i = begin; i < end; ++i) {
          ASSERT_EQ(Bits(*part, i - begin, kN), Bits(*whole, i, kN)) << "row " << i << " of " << begin << "-" << end;
        }
      }
      const auto eight = run(40, 48, y_dtype);
      for (int tokens = 1; tokens <= 8; ++tokens) {
        for (int begin = 40; begin + tokens <= 48; begin += tokens) {
          const auto few = run(begin, begin + tokens, y_dtype);
          for (int i = 0; i < tokens; ++i) {
            ASSERT_EQ(Bits(*few, i, kN), Bits(*eight, begin - 40 + i, kN)) << "row " << begin + i << " of " << tokens;
          }
        }
      }
    }
  }
}

TEST_P(CudaLinearTest, GradientsHaveTheSameBitsTwice) {
  constexpr std::int64_t kTokens = 1100, kN = 36, kK = 56;
  TestWeight w(kind(), kN, kK, 64, &random_, WeightPlace::kElements);
  GuardedMatrix x(DType::kBF16, kTokens, kK, kK), grad_y(DType::kF32, kTokens, kN, kN);
  x.FillNormal(&random_);
  grad_y.FillNormal(&random_);
  struct Gradients {
    GuardedMatrix x{DType::kF32, kTokens, kK, kK}, w{DType::kF32, kN, kK, kK}, bias{DType::kF32, 1, kN, kN};
  };
  Gradients first, second;
  for (Gradients* g : {&first, &second}) {
    QST_ASSERT_OK(LinearBackwardInput(ctx_, grad_y.view(), w.view(), g->x.view(), false));
    QST_ASSERT_OK(LinearBackwardWeight(ctx_, grad_y.view(), x.view(), g->w.view(), g->bias.view(), false));
  }
  for (std::int64_t i = 0; i < kTokens; ++i) ASSERT_EQ(Bits(second.x, i, kK), Bits(first.x, i, kK)) << "row " << i;
  for (std::int64_t i = 0; i < kN; ++i) ASSERT_EQ(Bits(second.w, i, kK), Bits(first.w, i, kK)) << "row " << i;
  EXPECT_EQ(Bits(second.bias, 0, kN), Bits(first.bias, 0, kN));
}

TEST_P(CudaLinearTest, NanAndInfinityStayInTheirToken) {
  for (const std::int64_t tokens : {8, 20}) {
    constexpr std::int64_t kN = 37, kK = 128;
    TestWeight w(kind(), kN, kK, 64, &random_, WeightPlace::kVectors);
    GuardedMatrix x(DType::kBF16, tokens, kK, kK), y(DType::kF32, tokens, kN, kN), clean(DType::kF32, tokens, kN, kN);
    x.FillNormal(&random_);
    QST_ASSERT_OK(Linear(ctx_, x.view(), w.view(), MatrixView{}, clean.view(), false));
    ASSERT_TRUE(SynchronizeTestDevice());
    x.Set(5, 5, std::numeric_limits<float>::quiet_NaN());
    x.Set(7, 127, std::numeric_limits<float>::infinity());
    QST_ASSERT_OK(Linear(ctx_, x.view(), w.view(), MatrixView{}, y.view(), false));
    ASSERT_TRUE(SynchronizeTestDevice());
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (std::int64_t j = 0; j < kN; ++j) {
        if (i == 5) {
          EXPECT_TRUE(std::isnan(y.Get(i, j)));
        } else if (i == 7) {
          EXPECT_FALSE(std::isfinite(y.Get(i, j)));
        } else {
          EXPECT_EQ(y.Get(i, j), clean.Get(i, j));
        }
      }
    }
  }
}

class CudaLinearOpTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestCuda::StreamOrNull() == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
    ctx_ = OpContext{DeviceType::kCuda, nullptr, CpuIsa::kAuto, TestCuda::StreamOrNull()};
  }
  OpContext ctx_;
  std::mt19937 random_{7};
};

TEST_F(CudaLinearOpTest, GradientsOfWeightAndBiasMatchFloat64) {
  // Less than a chunk of tokens, exactly one, several with and without a rest.
  constexpr Shape kShapes[] = {
      {0, 5, 7, 0},    {1, 1, 1, 0},    {3, 5, 9, 0},      {1, 16, 24, 0},   {200, 16, 40, 0}, {512, 12, 8, 0},
      {513, 9, 17, 0}, {1024, 8, 8, 0}, {1300, 20, 33, 0}, {2048, 3, 16, 0}, {700, 130, 4, 0},
  };
  int variant = 0;
  for (const Shape& s : kShapes) {
    for (const bool accumulate : {false, true}) {
      const int v = variant++;
      const DType x_dtype = kFloatTypes[v % 3];
      const bool is_aligned = v % 4 != 0;
      const bool has_bias = v % 5 != 0;
      SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", n " << s.n << ", k " << s.k << ", x "
                                      << DTypeName(x_dtype) << ", accumulate " << accumulate << ", aligned "
                                      << is_aligned << ", bias " << has_bias);
      const auto ld = [&](std::int64_t cols) { return is_aligned ? (cols + 7) / 8 * 8 + v % 2 * 8 : cols + v % 4; };
      GuardedMatrix grad_y(DType::kF32, s.tokens, s.n, ld(s.n), is_aligned ? 0 : 4 * (v % 5));
      GuardedMatrix x(x_dtype, s.tokens, s.k, ld(s.k), is_aligned ? 0 : DTypeBytes(x_dtype));
      GuardedMatrix grad_w(DType::kF32, s.n, s.k, ld(s.k), is_aligned ? 0 : 4 * (v % 7));
      GuardedMatrix grad_bias(DType::kF32, 1, s.n, s.n, 4);
      grad_y.FillNormal(&random_);
      x.FillNormal(&random_);
      grad_w.FillNormal(&random_);
      grad_bias.FillNormal(&random_);
      const DoubleMatrix start = Start(accumulate ? &grad_w : nullptr, nullptr, s.n, s.k);
      const DoubleMatrix bias_start = Start(accumulate ? &grad_bias : nullptr, nullptr, 1, s.n);
      QST_ASSERT_OK(LinearBackwardWeight(ctx_, grad_y.view(), x.view(), grad_w.view(),
                                         has_bias ? grad_bias.view() : MatrixView{}, accumulate));
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

// Sums over panels of a weight that is too large for one, at elements on both sides of the cut.
TEST_F(CudaLinearOpTest, PanelsOfALargeWeightAddUp) {
  constexpr std::int64_t kTokens = 9, kN = 2304, kK = 16416;
  const std::int64_t cut = cuda::PanelRows(kN, kK, DType::kBF16);
  ASSERT_LT(cut, kN);
  Quant4Tensor tensor;
  tensor.rows = kN;
  tensor.cols = kK;
  tensor.packed.resize(kN * kK / 2);
  for (std::uint8_t& byte : tensor.packed) byte = static_cast<std::uint8_t>(random_());
  tensor.absmax.resize(kN * kK / 64);
  for (float& absmax : tensor.absmax) absmax = static_cast<float>(random_() % 1000) / 1000.0f;
  const TestQuant4 w(tensor);
  const auto weight_row = [&](std::int64_t i) {
    std::vector<float> row(kK);
    DequantizeRange(tensor.view(), i * kK, kK, row.data());
    return Rounded(DoubleMatrix{1, kK, std::vector<double>(row.begin(), row.end())}, DType::kBF16).values;
  };

  GuardedMatrix x(DType::kBF16, kTokens, kK, kK), y(DType::kF32, kTokens, kN, kN);
  x.FillNormal(&random_);
  QST_ASSERT_OK(Linear(ctx_, x.view(), WeightView::Quantized(w.view()), MatrixView{}, y.view(), false));
  ASSERT_TRUE(SynchronizeTestDevice());
  for (const std::int64_t j : {std::int64_t{0}, cut - 1, cut, cut + 1, kN - 1}) {
    const std::vector<double> row = weight_row(j);
    for (const std::int64_t i : {0, 8}) {
      double expected = 0.0;
      double magnitude = 0.0;
      for (std::int64_t k = 0; k < kK; ++k) {
        expected += row[k] * x.Get(i, k);
        magnitude += std::fabs(row[k] * x.Get(i, k));
      }
      EXPECT_NEAR(y.Get(i, j), expected, 1e-5 * magnitude) << i << ", " << j;
    }
  }

  GuardedMatrix grad_y(DType::kF32, kTokens, kN, kN), grad_x(DType::kF32, kTokens, kK, kK);
  for (std::int64_t i = 0; i < kTokens; ++i) {
    for (std::int64_t j = 0; j < kN; ++j)
      grad_y.Set(i, j, j == 3 || j == cut - 1 || j == cut || j == kN - 1 ? 2.0f : 0.0f);
  }
  QST_ASSERT_OK(LinearBackwardInput(ctx_, grad_y.view(), WeightView::Quantized(w.view()), grad_x.view(), false));
  ASSERT_TRUE(SynchronizeTestDevice());
  std::vector<double> expected(kK, 0.0);
  for (const std::int64_t j : {std::int64_t{3}, cut - 1, cut, kN - 1}) {
    const std::vector<double> row = weight_row(j);
    for (std::int64_t k = 0; k < kK; ++k) expected[k] += 2.0 * row[k];
  }
  for (std::int64_t k = 0; k < kK; ++k) ASSERT_NEAR(grad_x.Get(8, k), expected[k], 1e-5) << k;
}

TEST_F(CudaLinearOpTest, AStreamHoldsWhatIsPlanned) {
  const auto device = cuda::Device::Open(cuda::DeviceOptions()).value();
  const auto stream = device->NewStream().value();
  const OpContext ctx{DeviceType::kCuda, nullptr, CpuIsa::kAuto, stream.get()};
  // The device hands out memory in pieces of this.
  constexpr std::int64_t kPiece = 2 << 20;
  cuda::LinearShape shape;
  shape.tokens = 600;
  shape.n = 512;
  shape.k = 1024;
  shape.x = DType::kF32;
  shape.y = DType::kF32;
  shape.needs_grad_x = true;
  shape.needs_grad_w = true;
  GuardedMatrix x(DType::kF32, shape.tokens, shape.k, shape.k), y(DType::kF32, shape.tokens, shape.n, shape.n);
  GuardedMatrix grad_w(DType::kF32, shape.n, shape.k, shape.k);
  x.FillNormal(&random_);
  y.FillNormal(&random_);
  TestWeight w(WeightKind::kNF4, shape.n, shape.k, 64, &random_, WeightPlace::kVectors);
  QST_ASSERT_OK(Linear(ctx, x.view(), w.view(), MatrixView{}, y.view(), false));
  QST_ASSERT_OK(LinearBackwardInput(ctx, y.view(), w.view(), x.view(), false));
  QST_ASSERT_OK(LinearBackwardWeight(ctx, y.view(), x.view(), grad_w.view(), MatrixView{}, false));
  ASSERT_TRUE(SynchronizeTestDevice());
  const std::int64_t planned =
      cuda::kBlasWorkspaceBytes + cuda::LinearPanelBytes(shape) + cuda::LinearScratchBytes(shape);
  EXPECT_GE(device->allocated_bytes(), planned);
  EXPECT_LE(device->allocated_bytes(), planned + 4 * kPiece);
}

TEST_F(CudaLinearOpTest, WithoutRoomForPanelsItSaysSo) {
  cuda::DeviceOptions options;
  options.memory_budget_bytes = cuda::kBlasWorkspaceBytes + (1 << 20);
  const auto device = cuda::Device::Open(options).value();
  const auto stream = device->NewStream().value();
  const OpContext ctx{DeviceType::kCuda, nullptr, CpuIsa::kAuto, stream.get()};
  TestWeight w(WeightKind::kNF4, 1024, 1024, 64, &random_, WeightPlace::kVectors);
  GuardedMatrix x(DType::kBF16, 16, 1024, 1024), y(DType::kF32, 16, 1024, 1024);
  x.FillNormal(&random_);
  EXPECT_THAT(Linear(ctx, x.view(), w.view(), MatrixView{}, y.view(), false),
              StatusIs(absl::StatusCode::kResourceExhausted));
  // Few tokens need no panel.
  QST_EXPECT_OK(Linear(ctx, Rows(x.view(), 0, 8), w.view(), MatrixView{}, Rows(y.view(), 0, 8), false));
  ASSERT_TRUE(SynchronizeTestDevice());
}

// A weight that is uploaded and used at once, again and again in the same memory.
TEST_F(CudaLinearOpTest, AWeightThatWasJustUploadedIsTheOneThatIsUsed) {
  constexpr std::int64_t kTokens = 16, kN = 256, kK = 512;
  GuardedMatrix x(DType::kBF16, kTokens, kK, kK);
  for (std::int64_t i = 0; i < kTokens; ++i) {
    for (std::int64_t k = 0; k < kK; ++k) x.Set(i, k, 1.0f);
  }
  DeviceMemory packed = DeviceMemory::Allocate(ctx_, kN * kK / 2).value();
  DeviceMemory absmax = DeviceMemory::Allocate(ctx_, kN * kK / 64 * sizeof(float)).value();
  Quant4View view;
  view.rows = kN;
  view.cols = kK;
  view.packed = packed.as<std::uint8_t>();
  view.absmax = absmax.as<float>();
  std::vector<std::unique_ptr<GuardedMatrix>> results;
  for (int round = 0; round < 4; ++round) {
    // Code 15 is 1: every element of the weight is its block's constant.
    const std::vector<std::uint8_t> codes(kN * kK / 2, 0xff);
    const std::vector<float> constants(kN * kK / 64, static_cast<float>(round + 1));
    QST_ASSERT_OK(Upload(ctx_, codes.data(), codes.size(), packed.data()));
    QST_ASSERT_OK(Upload(ctx_, constants.data(), constants.size() * sizeof(float), absmax.data()));
    results.push_back(std::make_unique<GuardedMatrix>(DType::kF32, kTokens, kN, kN));
    QST_ASSERT_OK(Linear(ctx_, x.view(), WeightView::Quantized(view), MatrixView{}, results.back()->view(), false));
  }
  ASSERT_TRUE(SynchronizeTestDevice());
  for (int round = 0; round < 4; ++round) {
    for (std::int64_t j = 0; j < kN; ++j) ASSERT_EQ(results[round]->Get(3, j), 512.0f * (round + 1)) << round;
  }
}

TEST_F(CudaLinearOpTest, Tf32ProductsAreWithinItsRounding) {
  const auto device = cuda::Device::Open(cuda::DeviceOptions()).value();
  cuda::StreamOptions options;
  options.allow_tf32 = true;
  const auto stream = device->NewStream(options).value();
  const OpContext ctx{DeviceType::kCuda, nullptr, CpuIsa::kAuto, stream.get()};
  constexpr std::int64_t kTokens = 64, kN = 48, kK = 96;
  TestWeight w(WeightKind::kF32, kN, kK, 64, &random_, WeightPlace::kVectors);
  GuardedMatrix x(DType::kF32, kTokens, kK, kK), y(DType::kF32, kTokens, kN, kN);
  x.FillNormal(&random_);
  QST_ASSERT_OK(Linear(ctx, x.view(), w.view(), MatrixView{}, y.view(), false));
  const DoubleMatrix start{kTokens, kN, std::vector<double>(kTokens * kN)};
  ProductTolerance tolerance;
  // Both factors are rounded to 10 bits: 2^-10 of a product's magnitude, in units of the bound for sums of kK.
  tolerance.sums = kTensorCoreSums + std::ldexp(1.0, 13) / (kK + 2);
  ExpectIsProduct(ToDouble(x, kTokens, kK), w.values().Transposed(), start, ToDouble(y, kTokens, kN), tolerance);
}

}  // namespace
}  // namespace qst
