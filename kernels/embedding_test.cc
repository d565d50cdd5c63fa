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

class EmbeddingTest : public OpTest {
 protected:
  Random random_{71};
};

TEST_P(EmbeddingTest, MatchesReferenceForEveryTableType) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const std::int64_t cols : {1, 7, 8, 37}) {
      const DMatrix table = Rounded(random_.NormalMatrix(11, cols), dtype);
      const DMatrix positions_table = Rounded(random_.NormalMatrix(6, cols), dtype);
      const Indices tokens = random_.Indices(20, 11);
      const Indices positions = random_.Indices(20, 6);
      for (const DType y_dtype : OperandTypes()) {
        if (y_dtype != DType::kF32 && y_dtype != dtype) continue;
        TestMatrix y(20, cols, y_dtype, 3);
        QST_ASSERT_OK(EmbeddingLookup(Context(), Reachable(tokens).data(), 20, TestMatrix(table, dtype, 1), nullptr,
                                      ConstMatrixView(), y));
        EXPECT_TRUE(IsClose(y, ReferenceEmbeddingLookup(tokens, table, {}, DMatrix()), 0.0));
        QST_ASSERT_OK(EmbeddingLookup(Context(), Reachable(tokens).data(), 20, TestMatrix(table, dtype, 1),
                                      Reachable(positions).data(), TestMatrix(positions_table, dtype), y));
        EXPECT_TRUE(
            IsClose(y, ReferenceEmbeddingLookup(tokens, table, positions, positions_table), RoundingError(y_dtype)));
      }
    }
  }
}

TEST_P(EmbeddingTest, WhereTablesLieChangesNoBit) {
  const TestVector<std::int32_t> tokens = Reachable(random_.Indices(20, 11));
  const TestVector<std::int32_t> positions = Reachable(random_.Indices(20, 6));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const DMatrix table = random_.NormalMatrix(11, 40);
    const DMatrix positions_table = random_.NormalMatrix(6, 40);
    TestMatrix expected(20, 40);
    QST_ASSERT_OK(EmbeddingLookup(Context(), tokens.data(), 20, TestMatrix(table, dtype), positions.data(),
                                  TestMatrix(positions_table, dtype), expected));
    for (const std::int64_t padding : {0, 8, 3}) {
      TestMatrix actual(20, 40, DType::kF32, padding, TestStart::kAligned);
      QST_ASSERT_OK(EmbeddingLookup(Context(), tokens.data(), 20,
                                    TestMatrix(table, dtype, padding, TestStart::kAligned), positions.data(),
                                    TestMatrix(positions_table, dtype, padding, TestStart::kAligned), actual));
      EXPECT_TRUE(actual.GuardsIntact());
      EXPECT_EQ(actual.Bits(), expected.Bits());
    }
  }
}

TEST_P(EmbeddingTest, NoTokensAreFine) {
  QST_EXPECT_OK(EmbeddingLookup(Context(), nullptr, 0, TestMatrix(random_.NormalMatrix(3, 4)), nullptr,
                                ConstMatrixView(), TestMatrix(0, 4)));
}

TEST_P(EmbeddingTest, RefusesIndicesOutsideTheTable) {
  if (IsCuda()) GTEST_SKIP() << "a GPU's memory is not looked into: who uploads indices has checked them";
  const TestMatrix table(random_.NormalMatrix(3, 4));
  TestMatrix y(2, 4);
  const Indices good = {0, 2};
  const Indices above = {0, 3};
  const Indices below = {-1, 0};
  EXPECT_THAT(EmbeddingLookup(Context(), above.data(), 2, table, nullptr, ConstMatrixView(), y),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tokens[1] is 3, outside [0, 3)")));
  EXPECT_THAT(EmbeddingLookup(Context(), below.data(), 2, table, nullptr, ConstMatrixView(), y),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tokens[0] is -1")));
  EXPECT_THAT(EmbeddingLookup(Context(), good.data(), 2, table, above.data(), table, y),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("positions[1] is 3")));
}

TEST_P(EmbeddingTest, RefusesOperandsThatDisagree) {
  const TestMatrix table(random_.NormalMatrix(3, 4));
  TestMatrix y(2, 4);
  const TestVector<std::int32_t> good = {0, 2};
  EXPECT_THAT(EmbeddingLookup(Context(), nullptr, 2, table, nullptr, ConstMatrixView(), y),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tokens is null")));
  EXPECT_THAT(EmbeddingLookup(Context(), good.data(), 2, table, nullptr, table, y),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("positions is null")));
  EXPECT_THAT(EmbeddingLookup(Context(), good.data(), 2, table, good.data(), TestMatrix(DMatrix(5, 3)), y),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("positions_table is [5, 3]")));
  EXPECT_THAT(EmbeddingLookup(Context(), good.data(), -2, table, nullptr, ConstMatrixView(), y),
              StatusIs(absl::StatusCode::kInvalidArgument));
  // y may be f32, and on a GPU of the table's type.
  TestMatrix narrow(DMatrix(2, 4), DType::kBF16);
  EXPECT_THAT(EmbeddingLookup(Context(), good.data(), 2, table, nullptr, ConstMatrixView(), narrow),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr(IsCuda() ? "y of bf16" : "y is bf16")));
  if (IsCuda()) {
    EXPECT_THAT(
        EmbeddingLookup(Context(), good.data(), 2, table, good.data(), TestMatrix(DMatrix(5, 4), DType::kF16), y),
        StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("tables of types f32 and f16")));
  }
}

QST_INSTANTIATE_OP_TEST(EmbeddingTest);

}  // namespace
}  // namespace qst
