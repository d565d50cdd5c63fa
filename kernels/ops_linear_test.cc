#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ops.h"
#include "kernels/quant/quant4.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/test_memory.h"
#include "kernels/testing/test_quant4.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Floats = TestVector<float>;

// y = x W^T with T = 2, n = 3, k = 4: numbers that every type holds exactly.
class LinearOpTest : public OpTest {
 protected:
  ConstMatrixView x() const { return Matrix(x_.data(), 2, 4); }
  WeightView w() const { return WeightView::Dense(Matrix(w_.data(), 3, 4)); }
  ConstMatrixView bias() const { return Matrix(bias_.data(), 1, 3); }
  MatrixView y() { return Matrix(y_.data(), 2, 3); }

  const Floats x_ = {1, 2, 3, 4, 0, 1, 0, -1};
  const Floats w_ = {1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1};
  const Floats bias_ = {10, 20, 30};
  Floats y_ = Floats(6, 100.0f);
};

TEST_P(LinearOpTest, ForwardAndBackwardComputeTheirFormulas) {
  QST_ASSERT_OK(Linear(Context(), x(), w(), bias(), y(), false));
  EXPECT_EQ(Synced(y_), (Floats{11, 26, 40, 10, 20, 30}));
  QST_ASSERT_OK(Linear(Context(), x(), w(), ConstMatrixView(), y(), true));
  EXPECT_EQ(Synced(y_), (Floats{12, 32, 50, 10, 20, 30}));

  Floats grad_x(8, 7.0f);
  QST_ASSERT_OK(LinearBackwardInput(Context(), Matrix(bias_.data(), 1, 3), w(), Matrix(grad_x.data(), 1, 4), false));
  EXPECT_EQ(Synced(grad_x), (Floats{40, 50, 30, 50, 7, 7, 7, 7}));

  Floats grad_w(12, 1.0f), grad_b(3, 1.0f);
  const Floats grad_y = {1, 0, 2, 0, 1, 0};
  QST_ASSERT_OK(LinearBackwardWeight(Context(), Matrix(grad_y.data(), 2, 3), x(), Matrix(grad_w.data(), 3, 4),
                                     Matrix(grad_b.data(), 1, 3), true));
  EXPECT_EQ(Synced(grad_w), (Floats{2, 3, 4, 5, 1, 2, 1, 0, 3, 5, 7, 9}));
  EXPECT_EQ(grad_b, (Floats{2, 2, 3}));
}

TEST_P(LinearOpTest, DisagreeingShapesAreRefusedByName) {
  const auto is_invalid = [](const char* what) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what));
  };
  const OpContext ctx = Context();
  EXPECT_THAT(Linear(ctx, Matrix(x_.data(), 2, 3), w(), bias(), y(), false), is_invalid("w is [3, 4]"));
  EXPECT_THAT(Linear(ctx, x(), w(), Matrix(bias_.data(), 1, 2), y(), false), is_invalid("bias"));
  EXPECT_THAT(Linear(ctx, x(), w(), bias(), Matrix(y_.data(), 3, 2), false), is_invalid("w is [3, 4], need [2, 4]"));
  EXPECT_THAT(Linear(ctx, x(), w(), bias(), Matrix(y_.data(), 1, 3), false), is_invalid("y is [1, 3]"));
  MatrixView narrow = y();
  narrow.ld = 2;
  EXPECT_THAT(Linear(ctx, x(), w(), bias(), narrow, false), is_invalid("ld 2"));
  EXPECT_THAT(Linear(ctx, ConstMatrixView(nullptr, DType::kF32, 2, 4, 4), w(), bias(), y(), false), is_invalid("x"));
  EXPECT_THAT(LinearBackwardInput(ctx, x(), w(), y(), false), is_invalid("need [4, 3]"));
  EXPECT_THAT(LinearBackwardWeight(ctx, x(), Matrix(x_.data(), 1, 4), y(), MatrixView{}, false), is_invalid("x is"));
  EXPECT_EQ(Synced(y_), Floats(6, 100.0f));
}

TEST_P(LinearOpTest, BrokenQuantizedWeightsAreRefused) {
  const TestQuant4 tensor(Quantize4Bit(w_.data(), 3, 4, Quant4Options()).value());
  QST_EXPECT_OK(Linear(Context(), x(), WeightView::Quantized(tensor.view()), bias(), y(), false));
  Quant4View view = tensor.view();
  view.nested_absmax = nullptr;
  EXPECT_THAT(Linear(Context(), x(), WeightView::Quantized(view), bias(), y(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("Linear: w"), HasSubstr("nested_absmax"))));
  view = tensor.view();
  view.rows = 2;
  EXPECT_THAT(Linear(Context(), x(), WeightView::Quantized(view), bias(), y(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("w is [2, 4], need [3, 4]")));
  view = tensor.view();
  view.block_size = 96;
  EXPECT_THAT(Linear(Context(), x(), WeightView::Quantized(view), bias(), y(), false),
              StatusIs(IsCuda() ? absl::StatusCode::kUnimplemented : absl::StatusCode::kOk));
}

TEST_P(LinearOpTest, DtypesWithoutCodeAreUnimplemented) {
  const auto is_unimplemented = StatusIs(absl::StatusCode::kUnimplemented);
  const ConstMatrixView bytes(x_.data(), DType::kI8, 2, 4, 4);
  EXPECT_THAT(Linear(Context(), bytes, w(), bias(), y(), false), is_unimplemented);
  EXPECT_THAT(
      Linear(Context(), x(), WeightView::Dense(ConstMatrixView(w_.data(), DType::kI32, 3, 4, 4)), bias(), y(), false),
      is_unimplemented);
  EXPECT_THAT(LinearBackwardInput(Context(), bytes, WeightView::Dense(Matrix(w_.data(), 4, 3)), y(), false),
              is_unimplemented);
  MatrixView half = y();
  half.dtype = DType::kF16;
  EXPECT_THAT(Linear(Context(), x(), w(), bias(), half, false),
              StatusIs(IsCuda() ? absl::StatusCode::kOk : absl::StatusCode::kUnimplemented));
  half.dtype = DType::kI8;
  EXPECT_THAT(Linear(Context(), x(), w(), bias(), half, false), is_unimplemented);
}

TEST_P(LinearOpTest, EmptyProductsLeaveTheStart) {
  // No inner dimension: the bias alone, or what was there.
  const ConstMatrixView no_depth(nullptr, DType::kF32, 2, 0, 0);
  const WeightView no_depth_w = WeightView::Dense(ConstMatrixView(nullptr, DType::kF32, 3, 0, 0));
  QST_ASSERT_OK(Linear(Context(), no_depth, no_depth_w, ConstMatrixView(), y(), true));
  EXPECT_EQ(Synced(y_), Floats(6, 100.0f));
  QST_ASSERT_OK(Linear(Context(), no_depth, no_depth_w, bias(), y(), false));
  EXPECT_EQ(Synced(y_), (Floats{10, 20, 30, 10, 20, 30}));
  const WeightView no_rows_w = WeightView::Dense(ConstMatrixView(nullptr, DType::kF32, 0, 3, 3));
  QST_ASSERT_OK(LinearBackwardInput(Context(), no_depth, no_rows_w, y(), true));
  EXPECT_EQ(Synced(y_), (Floats{10, 20, 30, 10, 20, 30}));
  QST_ASSERT_OK(LinearBackwardInput(Context(), no_depth, no_rows_w, y(), false));
  EXPECT_EQ(Synced(y_), Floats(6, 0.0f));
  // No tokens: gradients of zero.
  Floats grad_w(12, 1.0f);
  y_.assign(6, 30.0f);
  QST_ASSERT_OK(LinearBackwardWeight(Context(), ConstMatrixView(nullptr, DType::kF32, 0, 3, 3),
                                     ConstMatrixView(nullptr, DType::kF32, 0, 4, 4), Matrix(grad_w.data(), 3, 4),
                                     Matrix(y_.data(), 1, 3), false));
  EXPECT_EQ(Synced(grad_w), Floats(12, 0.0f));
  EXPECT_EQ(y_, (Floats{0, 0, 0, 30, 30, 30}));
  QST_EXPECT_OK(Linear(Context(), ConstMatrixView(nullptr, DType::kF32, 0, 4, 4), w(), bias(),
                       MatrixView{nullptr, DType::kF32, 0, 3, 3}, false));
}

QST_INSTANTIATE_OP_TEST(LinearOpTest);

TEST(LinearContextTest, ADeviceWithoutAStreamIsRefused) {
  OpContext ctx;
  ctx.device = DeviceType::kCuda;
  EXPECT_THAT(Linear(ctx, ConstMatrixView(), WeightView(), ConstMatrixView(), MatrixView(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no CUDA stream")));
}

}  // namespace
}  // namespace qst
