#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// y = x W^T with T = 2, n = 3, k = 4.
class LinearOpTest : public testing::Test {
 protected:
  LinearOpTest() { ctx_.threads = &threads_; }

  ConstMatrixView x() const { return Matrix(x_.data(), 2, 4); }
  WeightView w() const { return WeightView::Dense(Matrix(w_.data(), 3, 4)); }
  ConstMatrixView bias() const { return Matrix(bias_.data(), 1, 3); }
  MatrixView y() { return Matrix(y_.data(), 2, 3); }

  ThreadPool threads_{2};
  OpContext ctx_;
  const std::vector<float> x_ = {1, 2, 3, 4, 0, 1, 0, -1};
  const std::vector<float> w_ = {1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1};
  const std::vector<float> bias_ = {10, 20, 30};
  std::vector<float> y_ = std::vector<float>(6, 100.0f);
};

TEST_F(LinearOpTest, ForwardAndBackwardComputeTheirFormulas) {
  for (const CpuIsa isa : {CpuIsa::kAuto, CpuIsa::kPortable}) {
    ctx_.isa = isa;
    QST_ASSERT_OK(Linear(ctx_, x(), w(), bias(), y(), false));
    EXPECT_EQ(y_, (std::vector<float>{11, 26, 40, 10, 20, 30}));
    QST_ASSERT_OK(Linear(ctx_, x(), w(), ConstMatrixView(), y(), true));
    EXPECT_EQ(y_, (std::vector<float>{12, 32, 50, 10, 20, 30}));

    std::vector<float> grad_x(8, 7.0f);
    QST_ASSERT_OK(LinearBackwardInput(ctx_, Matrix(bias_.data(), 1, 3), w(), Matrix(grad_x.data(), 1, 4), false));
    EXPECT_EQ(grad_x, (std::vector<float>{40, 50, 30, 50, 7, 7, 7, 7}));

    std::vector<float> grad_w(12, 1.0f), grad_b(3, 1.0f);
    const std::vector<float> grad_y = {1, 0, 2, 0, 1, 0};
    QST_ASSERT_OK(LinearBackwardWeight(ctx_, Matrix(grad_y.data(), 2, 3), x(), Matrix(grad_w.data(), 3, 4),
                                       Matrix(grad_b.data(), 1, 3), true));
    EXPECT_EQ(grad_w, (std::vector<float>{2, 3, 4, 5, 1, 2, 1, 0, 3, 5, 7, 9}));
    EXPECT_EQ(grad_b, (std::vector<float>{2, 2, 3}));
  }
}

TEST_F(LinearOpTest, DisagreeingShapesAreRefusedByName) {
  const auto is_invalid = [](const char* what) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what));
  };
  EXPECT_THAT(Linear(ctx_, Matrix(x_.data(), 2, 3), w(), bias(), y(), false), is_invalid("w is [3, 4]"));
  EXPECT_THAT(Linear(ctx_, x(), w(), Matrix(bias_.data(), 1, 2), y(), false), is_invalid("bias"));
  EXPECT_THAT(Linear(ctx_, x(), w(), bias(), Matrix(y_.data(), 3, 2), false), is_invalid("w is [3, 4], need [2, 4]"));
  EXPECT_THAT(Linear(ctx_, x(), w(), bias(), Matrix(y_.data(), 1, 3), false), is_invalid("y is [1, 3]"));
  MatrixView narrow = y();
  narrow.ld = 2;
  EXPECT_THAT(Linear(ctx_, x(), w(), bias(), narrow, false), is_invalid("ld 2"));
  EXPECT_THAT(Linear(ctx_, ConstMatrixView(nullptr, DType::kF32, 2, 4, 4), w(), bias(), y(), false), is_invalid("x"));
  EXPECT_THAT(LinearBackwardInput(ctx_, x(), w(), y(), false), is_invalid("need [4, 3]"));
  EXPECT_THAT(LinearBackwardWeight(ctx_, x(), Matrix(x_.data(), 1, 4), y(), MatrixView{}, false), is_invalid("x is"));
  EXPECT_EQ(y_, std::vector<float>(6, 100.0f));
}

TEST_F(LinearOpTest, BrokenQuantizedWeightsAreRefused) {
  const Quant4Tensor tensor = Quantize4Bit(w_.data(), 3, 4, Quant4Options()).value();
  QST_EXPECT_OK(Linear(ctx_, x(), WeightView::Quantized(tensor.view()), bias(), y(), false));
  Quant4View view = tensor.view();
  view.nested_absmax = nullptr;
  EXPECT_THAT(Linear(ctx_, x(), WeightView::Quantized(view), bias(), y(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("Linear: w"), HasSubstr("nested_absmax"))));
  view = tensor.view();
  view.rows = 2;
  EXPECT_THAT(Linear(ctx_, x(), WeightView::Quantized(view), bias(), y(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("w is [2, 4], need [3, 4]")));
}

TEST_F(LinearOpTest, DtypesAndDevicesWithoutCodeAreUnimplemented) {
  const auto is_unimplemented = StatusIs(absl::StatusCode::kUnimplemented);
  const ConstMatrixView bytes(x_.data(), DType::kI8, 2, 4, 4);
  EXPECT_THAT(Linear(ctx_, bytes, w(), bias(), y(), false), is_unimplemented);
  EXPECT_THAT(Linear(ctx_, x(), WeightView::Dense(ConstMatrixView(w_.data(), DType::kI32, 3, 4, 4)), bias(), y(), false),
              is_unimplemented);
  MatrixView half = y();
  half.dtype = DType::kF16;
  EXPECT_THAT(Linear(ctx_, x(), w(), bias(), half, false), is_unimplemented);
  ctx_.device = DeviceType::kCuda;
  EXPECT_THAT(Linear(ctx_, x(), w(), bias(), y(), false), is_unimplemented);
}

TEST_F(LinearOpTest, EmptyProductsLeaveTheStart) {
  // No inner dimension: the bias alone, or what was there.
  const ConstMatrixView no_depth(nullptr, DType::kF32, 2, 0, 0);
  const WeightView no_depth_w = WeightView::Dense(ConstMatrixView(nullptr, DType::kF32, 3, 0, 0));
  QST_ASSERT_OK(Linear(ctx_, no_depth, no_depth_w, ConstMatrixView(), y(), true));
  EXPECT_EQ(y_, std::vector<float>(6, 100.0f));
  QST_ASSERT_OK(Linear(ctx_, no_depth, no_depth_w, bias(), y(), false));
  EXPECT_EQ(y_, (std::vector<float>{10, 20, 30, 10, 20, 30}));
  // No tokens: gradients of zero.
  std::vector<float> grad_w(12, 1.0f);
  QST_ASSERT_OK(LinearBackwardWeight(ctx_, ConstMatrixView(nullptr, DType::kF32, 0, 3, 3),
                                     ConstMatrixView(nullptr, DType::kF32, 0, 4, 4), Matrix(grad_w.data(), 3, 4),
                                     Matrix(y_.data(), 1, 3), false));
  EXPECT_EQ(grad_w, std::vector<float>(12, 0.0f));
  EXPECT_EQ(y_, (std::vector<float>{0, 0, 0, 10, 20, 30}));
}

}  // namespace
}  // namespace qst
