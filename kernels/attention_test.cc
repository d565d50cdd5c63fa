#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ops.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/reference_ops.h"
#include "kernels/testing/test_matrix.h"
#include "kernels/testing/test_memory.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

// Offsets where every backend can read them.
class OffsetsInMemory {
 public:
  explicit OffsetsInMemory(const Indices& offsets) : values_(offsets.begin(), offsets.end()) {}
  operator SequenceOffsets() const {  // NOLINT: stands for its view in op calls.
    return SequenceOffsets{values_.data(), static_cast<std::int64_t>(values_.size()) - 1};
  }

 private:
  TestVector<std::int32_t> values_;
};

OffsetsInMemory View(const Indices& offsets) { return OffsetsInMemory(offsets); }

AttentionShape Shape(std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim) {
  return AttentionShape{num_heads, num_kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

// Head counts and widths: side network (4, 5, 8), backbone (64), odd ones, one wider than a tile.
std::vector<AttentionShape> Shapes() {
  return {Shape(9, 3, 4), Shape(9, 9, 4),  Shape(4, 4, 5),  Shape(6, 2, 8),  Shape(9, 3, 64), Shape(2, 2, 1),
          Shape(4, 1, 7), Shape(2, 1, 16), Shape(3, 3, 17), Shape(8, 1, 40), Shape(1, 1, 100)};
}

// Empty and one-token sequences, one below, at and above a block of keys, and several blocks.
Indices RaggedOffsets() { return {0, 1, 1, 8, 71, 135, 200, 203, 203}; }

struct Operands {
  Operands(const AttentionShape& shape, std::int64_t num_queries, std::int64_t num_keys, std::uint64_t seed)
      : random(seed),
        q(random.NormalMatrix(num_queries, shape.num_heads * shape.head_dim, 1.5)),
        k(random.NormalMatrix(num_keys, shape.num_kv_heads * shape.head_dim, 1.5)),
        v(random.NormalMatrix(num_keys, shape.num_kv_heads * shape.head_dim)),
        grad_out(random.NormalMatrix(num_queries, shape.num_heads * shape.head_dim)) {}
  Random random;
  DMatrix q;
  DMatrix k;
  DMatrix v;
  DMatrix grad_out;
};

struct Forward {
  Forward(OpContext ctx, const AttentionShape& shape, const DMatrix& q, const DMatrix& k, const DMatrix& v,
          const Indices& q_offsets, const Indices& k_offsets, std::int64_t padding = 0)
      : out(q.rows, q.cols, DType::kF32, padding), log_sum_exp(q.rows, shape.num_heads) {
    status = Attention(ctx, shape, TestMatrix(q, DType::kF32, padding), TestMatrix(k, DType::kF32, padding),
                       TestMatrix(v, DType::kF32, padding), View(q_offsets), View(k_offsets), out, log_sum_exp.data());
  }
  absl::Status status;
  TestMatrix out;
  TestMatrix log_sum_exp;
};

struct Backward {
  Backward(OpContext ctx, const AttentionShape& shape, const Operands& x, const Indices& offsets,
           std::int64_t padding = 0)
      : q(x.q.rows, x.q.cols, DType::kF32, padding),
        k(x.k.rows, x.k.cols, DType::kF32, padding),
        v(x.v.rows, x.v.cols, DType::kF32, padding) {
    Forward forward(ctx, shape, x.q, x.k, x.v, offsets, offsets, padding);
    status = AttentionBackward(ctx, shape, TestMatrix(x.grad_out, DType::kF32, padding),
                               TestMatrix(x.q, DType::kF32, padding), TestMatrix(x.k, DType::kF32, padding),
                               TestMatrix(x.v, DType::kF32, padding), forward.out, forward.log_sum_exp.data(),
                               View(offsets), q, k, v);
  }
  absl::Status status;
  TestMatrix q;
  TestMatrix k;
  TestMatrix v;
};

// Rows [begin, end) of m.
DMatrix RowsOf(const DMatrix& m, std::int64_t begin, std::int64_t end) {
  DMatrix rows(end - begin, m.cols);
  for (std::int64_t i = begin; i < end; ++i) {
    for (std::int64_t j = 0; j < m.cols; ++j) rows.at(i - begin, j) = m.at(i, j);
  }
  return rows;
}

using AttentionTest = OpTest;

TEST_P(AttentionTest, MatchesReference) {
  for (const AttentionShape& shape : Shapes()) {
    SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim);
    const Indices offsets = RaggedOffsets();
    const Operands x(shape, offsets.back(), offsets.back(), 11);
    const AttentionResult expected = ReferenceAttention(shape, x.q, x.k, x.v, offsets, offsets);
    for (const std::int64_t padding : {0, 3}) {
      const Forward actual(Context(), shape, x.q, x.k, x.v, offsets, offsets, padding);
      QST_ASSERT_OK(actual.status);
      // Scores carry the rounding of head_dim products, and exp turns it into a relative error of weights.
      EXPECT_TRUE(IsClose(actual.out, expected.out, 4.0 * Tolerance(shape.head_dim)));
      EXPECT_TRUE(IsClose(actual.log_sum_exp, expected.log_sum_exp, Tolerance(shape.head_dim)));
    }
  }
}

// Windows of one key, within a block, of a block and more than a sequence has.
TEST_P(AttentionTest, WindowsMatchReference) {
  // The CUDA backend may run on the CPU here, where every small step costs much.
  const std::vector<std::int64_t> windows =
      IsCuda() ? std::vector<std::int64_t>{5, 70} : std::vector<std::int64_t>{1, 5, 64, 70, 1000};
  for (AttentionShape shape :
       IsCuda() ? std::vector<AttentionShape>{Shape(9, 3, 4), Shape(2, 1, 16), Shape(3, 3, 17)} : Shapes()) {
    for (const std::int64_t window : windows) {
      SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim
                                        << ", window " << window);
      shape.window = window;
      for (const auto& [q_offsets, k_offsets] :
           {std::pair<Indices, Indices>{{0, 1, 1, 8, 71, 203}, {0, 1, 1, 8, 71, 203}},
            std::pair<Indices, Indices>{{0, 1, 6, 6, 20}, {0, 150, 155, 155, 240}}}) {
        const Operands x(shape, q_offsets.back(), k_offsets.back(), 27);
        const AttentionResult expected = ReferenceAttention(shape, x.q, x.k, x.v, q_offsets, k_offsets);
        const Forward actual(Context(), shape, x.q, x.k, x.v, q_offsets, k_offsets);
        QST_ASSERT_OK(actual.status);
        EXPECT_TRUE(IsClose(actual.out, expected.out, 4.0 * Tolerance(shape.head_dim)));
        EXPECT_TRUE(IsClose(actual.log_sum_exp, expected.log_sum_exp, Tolerance(shape.head_dim)));
      }
    }
  }
}

TEST_P(AttentionTest, WindowsDecodedOneByOneGiveThePrefillsBits) {
  for (AttentionShape shape : {Shape(9, 3, 4), Shape(9, 3, 64), Shape(3, 3, 17)}) {
    shape.window = 21;
    constexpr std::int32_t kLength = 90;
    const Operands x(shape, kLength, kLength, 28);
    const Indices whole = {0, kLength};
    const Forward prefill(Context(), shape, x.q, x.k, x.v, whole, whole);
    for (const std::int32_t chunk : {7, 50}) {
      for (std::int32_t begin = 0; begin < kLength; begin += chunk) {
        const std::int32_t end = std::min(kLength, begin + chunk);
        const Forward part(Context(), shape, RowsOf(x.q, begin, end), RowsOf(x.k, 0, end), RowsOf(x.v, 0, end),
                           {0, end - begin}, {0, end});
        QST_ASSERT_OK(part.status);
        ASSERT_EQ(part.out.Bits(), prefill.out.Bits(begin, end)) << "from " << begin;
      }
    }
  }
}

TEST_P(AttentionTest, KeysBeforeTheWindowAreNeverRead) {
  for (AttentionShape shape : IsCuda() ? std::vector<AttentionShape>{Shape(6, 2, 8), Shape(3, 3, 17)} : Shapes()) {
    shape.window = 30;
    constexpr std::int32_t kLength = 130;
    constexpr std::int64_t kPoisoned = 81;
    Operands x(shape, kLength, kLength, 29);
    const Indices whole = {0, kLength};
    const Forward clean(Context(), shape, x.q, x.k, x.v, whole, whole);
    for (std::int64_t i = 0; i < kPoisoned; ++i) {
      for (std::int64_t j = 0; j < x.k.cols; ++j) {
        x.k.at(i, j) = std::numeric_limits<double>::quiet_NaN();
        x.v.at(i, j) = std::numeric_limits<double>::infinity();
      }
    }
    const Forward poisoned(Context(), shape, x.q, x.k, x.v, whole, whole);
    const std::int64_t first_clean = kPoisoned + shape.window - 1;
    EXPECT_EQ(poisoned.out.Bits(first_clean, kLength), clean.out.Bits(first_clean, kLength));
    for (const double value : RowsOf(poisoned.out.ToDouble(), first_clean - 1, first_clean).values) {
      EXPECT_TRUE(std::isnan(value));
    }
  }
}

TEST_P(AttentionTest, WindowsAreRefusedWhereTheyAreNotComputed) {
  AttentionShape shape = Shape(2, 1, 8);
  shape.window = -1;
  const Operands x(shape, 5, 5, 30);
  EXPECT_THAT(Forward(Context(), shape, x.q, x.k, x.v, {0, 5}, {0, 5}).status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("window is -1")));
  shape.window = 2;
  EXPECT_THAT(Backward(Context(), shape, x, {0, 5}).status,
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("window of 2")));
}

TEST_P(AttentionTest, BackwardMatchesReference) {
  for (const AttentionShape& shape : Shapes()) {
    SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim);
    const Indices offsets = RaggedOffsets();
    const Operands x(shape, offsets.back(), offsets.back(), 12);
    const AttentionGrads expected = ReferenceAttentionBackward(shape, x.grad_out, x.q, x.k, x.v, offsets);
    for (const std::int64_t padding : {0, 5}) {
      const Backward actual(Context(), shape, x, offsets, padding);
      QST_ASSERT_OK(actual.status);
      // grad_out v - grad_out out cancels, and sums run over sequences of up to 65.
      const double tolerance = 8.0 * Tolerance(shape.head_dim + 65);
      EXPECT_TRUE(IsClose(actual.q, expected.q, tolerance));
      EXPECT_TRUE(IsClose(actual.k, expected.k, tolerance));
      EXPECT_TRUE(IsClose(actual.v, expected.v, tolerance));
    }
  }
}

// Every width that tensor cores pad, with lengths that are no multiples of anything.
TEST_P(AttentionTest, NarrowWidthsMatchReference) {
  const Indices offsets = {0, 13, 14, 147};
  for (std::int64_t width = 1; width <= 16; ++width) {
    SCOPED_TRACE(width);
    const AttentionShape shape = Shape(2, 1, width);
    const Operands x(shape, offsets.back(), offsets.back(), 32);
    const AttentionResult expected = ReferenceAttention(shape, x.q, x.k, x.v, offsets, offsets);
    const Forward forward(Context(), shape, x.q, x.k, x.v, offsets, offsets);
    QST_ASSERT_OK(forward.status);
    EXPECT_TRUE(IsClose(forward.out, expected.out, 4.0 * Tolerance(width)));
    EXPECT_TRUE(IsClose(forward.log_sum_exp, expected.log_sum_exp, Tolerance(width)));
    const AttentionGrads grads = ReferenceAttentionBackward(shape, x.grad_out, x.q, x.k, x.v, offsets);
    const Backward backward(Context(), shape, x, offsets);
    QST_ASSERT_OK(backward.status);
    const double tolerance = 8.0 * Tolerance(width + 133);
    EXPECT_TRUE(IsClose(backward.q, grads.q, tolerance));
    EXPECT_TRUE(IsClose(backward.k, grads.k, tolerance));
    EXPECT_TRUE(IsClose(backward.v, grads.v, tolerance));
  }
}

// Products of two TF32 factors alone would be wrong by 1e-3.
TEST_P(AttentionTest, LongNarrowSequencesAreAsExactAsFloat32) {
  const AttentionShape shape = Shape(1, 1, 8);
  constexpr std::int32_t kLength = 2048;
  const Indices offsets = {0, kLength};
  const Operands x(shape, kLength, kLength, 33);
  const AttentionResult expected = ReferenceAttention(shape, x.q, x.k, x.v, offsets, offsets);
  const Forward forward(Context(), shape, x.q, x.k, x.v, offsets, offsets);
  QST_ASSERT_OK(forward.status);
  EXPECT_TRUE(IsClose(forward.out, expected.out, 4.0 * Tolerance(shape.head_dim)));
  EXPECT_TRUE(IsClose(forward.log_sum_exp, expected.log_sum_exp, Tolerance(shape.head_dim)));
  const AttentionGrads grads = ReferenceAttentionBackward(shape, x.grad_out, x.q, x.k, x.v, offsets);
  const Backward backward(Context(), shape, x, offsets);
  QST_ASSERT_OK(backward.status);
  EXPECT_TRUE(IsClose(backward.q, grads.q, 8.0 * Tolerance(kLength)));
  EXPECT_TRUE(IsClose(backward.k, grads.k, 8.0 * Tolerance(kLength)));
  EXPECT_TRUE(IsClose(backward.v, grads.v, 8.0 * Tolerance(kLength)));
}

TEST_P(AttentionTest, LongSequenceBackwardMatchesReference) {
  const AttentionShape shape = Shape(2, 1, 4);
  const Indices offsets = {0, 300};
  const Operands x(shape, 300, 300, 13);
  const AttentionGrads expected = ReferenceAttentionBackward(shape, x.grad_out, x.q, x.k, x.v, offsets);
  const Backward actual(Context(), shape, x, offsets);
  QST_ASSERT_OK(actual.status);
  EXPECT_TRUE(IsClose(actual.q, expected.q, 8.0 * Tolerance(300)));
  EXPECT_TRUE(IsClose(actual.k, expected.k, 8.0 * Tolerance(300)));
  EXPECT_TRUE(IsClose(actual.v, expected.v, 8.0 * Tolerance(300)));
}

TEST_P(AttentionTest, CachedKeysMatchReference) {
  for (const AttentionShape& shape : {Shape(9, 3, 4), Shape(9, 3, 64)}) {
    const Indices q_offsets = {0, 1, 6, 6, 20};
    const Indices k_offsets = {0, 150, 155, 155, 240};
    const Operands x(shape, 20, 240, 14);
    const AttentionResult expected = ReferenceAttention(shape, x.q, x.k, x.v, q_offsets, k_offsets);
    const Forward actual(Context(), shape, x.q, x.k, x.v, q_offsets, k_offsets);
    QST_ASSERT_OK(actual.status);
    EXPECT_TRUE(IsClose(actual.out, expected.out, 4.0 * Tolerance(shape.head_dim)));
    EXPECT_TRUE(IsClose(actual.log_sum_exp, expected.log_sum_exp, Tolerance(shape.head_dim)));
  }
}

TEST_P(AttentionTest, ThreadsChangeNoBit) {
  for (const AttentionShape& shape : Shapes()) {
    const Indices offsets = RaggedOffsets();
    const Operands x(shape, offsets.back(), offsets.back(), 15);
    const Forward forward(Context(1), shape, x.q, x.k, x.v, offsets, offsets);
    const Backward backward(Context(1), shape, x, offsets);
    for (const int threads : IsCuda() ? std::vector<int>{1} : std::vector<int>{1, 2, 3}) {
      const Forward f(Context(threads), shape, x.q, x.k, x.v, offsets, offsets);
      EXPECT_EQ(f.out.Bits(), forward.out.Bits());
      EXPECT_EQ(f.log_sum_exp.Bits(), forward.log_sum_exp.Bits());
      const Backward b(Context(threads), shape, x, offsets);
      EXPECT_EQ(b.q.Bits(), backward.q.Bits());
      EXPECT_EQ(b.k.Bits(), backward.k.Bits());
      EXPECT_EQ(b.v.Bits(), backward.v.Bits());
    }
  }
}

// Rows of each sequence have the same bits alone as in the batch, forward and backward.
void ExpectTheBitsOfSequencesAlone(OpContext ctx, const AttentionShape& shape, const Indices& offsets) {
  SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim);
  const Operands x(shape, offsets.back(), offsets.back(), 16);
  const Forward forward(ctx, shape, x.q, x.k, x.v, offsets, offsets);
  const Backward backward(ctx, shape, x, offsets);
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const std::int64_t begin = offsets[s];
    const std::int64_t end = offsets[s + 1];
    Operands alone(shape, 0, 0, 1);
    alone.q = RowsOf(x.q, begin, end);
    alone.k = RowsOf(x.k, begin, end);
    alone.v = RowsOf(x.v, begin, end);
    alone.grad_out = RowsOf(x.grad_out, begin, end);
    const Indices own = {0, static_cast<std::int32_t>(end - begin)};
    const Forward f(ctx, shape, alone.q, alone.k, alone.v, own, own);
    QST_ASSERT_OK(f.status);
    EXPECT_EQ(f.out.Bits(), forward.out.Bits(begin, end));
    EXPECT_EQ(f.log_sum_exp.Bits(), forward.log_sum_exp.Bits(begin, end));
    const Backward b(ctx, shape, alone, own);
    QST_ASSERT_OK(b.status);
    EXPECT_EQ(b.q.Bits(), backward.q.Bits(begin, end));
    EXPECT_EQ(b.k.Bits(), backward.k.Bits(begin, end));
    EXPECT_EQ(b.v.Bits(), backward.v.Bits(begin, end));
  }
}

TEST_P(AttentionTest, OtherSequencesChangeNoBit) {
  for (const AttentionShape& shape : Shapes()) ExpectTheBitsOfSequencesAlone(Context(), shape, RaggedOffsets());
}

// Narrow heads in several tiles of keys and blocks of rows.
TEST_P(AttentionTest, OtherSequencesChangeNoBitOfLongNarrowOnes) {
  for (const AttentionShape& shape : {Shape(4, 2, 8), Shape(1, 1, 13)}) {
    ExpectTheBitsOfSequencesAlone(Context(), shape, {0, 150, 151, 291});
  }
}

TEST_P(AttentionTest, DecodingOneByOneGivesThePrefillsBits) {
  for (const AttentionShape& shape : Shapes()) {
    SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim);
    // The CUDA backend may run on the CPU here, where every small step costs much.
    const std::int32_t kLength = IsCuda() ? 75 : 140;
    const Operands x(shape, kLength, kLength, 17);
    const Indices whole = {0, kLength};
    const Forward prefill(Context(), shape, x.q, x.k, x.v, whole, whole);
    for (const std::int32_t chunk : IsCuda() ? std::vector<std::int32_t>{7, 50} : std::vector<std::int32_t>{1, 3, 50}) {
      for (std::int32_t begin = 0; begin < kLength; begin += chunk) {
        const std::int32_t end = std::min(kLength, begin + chunk);
        const Forward part(Context(), shape, RowsOf(x.q, begin, end), RowsOf(x.k, 0, end), RowsOf(x.v, 0, end),
                           {0, end - begin}, {0, end});
        QST_ASSERT_OK(part.status);
        ASSERT_EQ(part.out.Bits(), prefill.out.Bits(begin, end)) << "from " << begin;
        ASSERT_EQ(part.log_sum_exp.Bits(), prefill.log_sum_exp.Bits(begin, end)) << "from " << begin;
      }
    }
  }
}

// The rows of a sequence cut elsewhere: other rows of a block, other tiles of which they see a part.
TEST_P(AttentionTest, LongNarrowSequencesInTwoPartsHaveTheSameBits) {
  for (AttentionShape shape : {Shape(2, 1, 8), Shape(1, 1, 11)}) {
    constexpr std::int32_t kLength = 230;
    const Operands x(shape, kLength, kLength, 35);
    for (const std::int64_t window : {0, 50}) {
      shape.window = window;
      const Forward prefill(Context(), shape, x.q, x.k, x.v, {0, kLength}, {0, kLength});
      QST_ASSERT_OK(prefill.status);
      for (const std::int32_t begin : {1, 77, 229}) {
        const Forward part(Context(), shape, RowsOf(x.q, begin, kLength), x.k, x.v, {0, kLength - begin}, {0, kLength});
        QST_ASSERT_OK(part.status);
        EXPECT_EQ(part.out.Bits(), prefill.out.Bits(begin, kLength)) << "from " << begin << ", window " << window;
        EXPECT_EQ(part.log_sum_exp.Bits(), prefill.log_sum_exp.Bits(begin, kLength)) << "from " << begin;
      }
    }
  }
}

TEST_P(AttentionTest, KeysFromTheFutureAreNeverRead) {
  for (const AttentionShape& shape : Shapes()) {
    constexpr std::int32_t kLength = 90;
    constexpr std::int64_t kCut = 41;
    Operands x(shape, kLength, kLength, 18);
    const Indices whole = {0, kLength};
    const Forward clean(Context(), shape, x.q, x.k, x.v, whole, whole);
    for (std::int64_t i = kCut; i < kLength; ++i) {
      for (std::int64_t j = 0; j < x.k.cols; ++j) {
        x.k.at(i, j) = std::numeric_limits<double>::quiet_NaN();
        x.v.at(i, j) = std::numeric_limits<double>::infinity();
      }
    }
    const Forward poisoned(Context(), shape, x.q, x.k, x.v, whole, whole);
    EXPECT_EQ(poisoned.out.Bits(0, kCut), clean.out.Bits(0, kCut));
    for (std::int64_t i = kCut; i < kLength; ++i) {
      for (const double value : RowsOf(poisoned.out.ToDouble(), i, i + 1).values) EXPECT_TRUE(std::isnan(value));
    }
  }
}

// Backward too: what a query does not see has no part in its gradient, nor has a query in those of later keys.
TEST_P(AttentionTest, GradientsKeepInfinitiesOfTheUnseenOut) {
  if (!IsCuda()) GTEST_SKIP() << "AVX2 kernels multiply them by a weight of 0";
  for (const AttentionShape& shape : {Shape(6, 2, 8), Shape(2, 2, 13), Shape(3, 3, 17)}) {
    SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim);
    constexpr std::int32_t kLength = 90;
    constexpr std::int64_t kCut = 41;
    const Indices whole = {0, kLength};
    const Operands clean(shape, kLength, kLength, 34);
    const Backward expected(Context(), shape, clean, whole);
    const auto poison = [](DMatrix& m, std::int64_t begin, std::int64_t end, double value) {
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t j = 0; j < m.cols; ++j) m.at(i, j) = value;
      }
    };
    Operands keys = clean;
    poison(keys.k, kCut, kLength, std::numeric_limits<double>::quiet_NaN());
    poison(keys.v, kCut, kLength, std::numeric_limits<double>::infinity());
    const Backward by_keys(Context(), shape, keys, whole);
    QST_ASSERT_OK(by_keys.status);
    EXPECT_EQ(by_keys.q.Bits(0, kCut), expected.q.Bits(0, kCut));
    Operands queries = clean;
    poison(queries.q, 0, kCut, std::numeric_limits<double>::quiet_NaN());
    poison(queries.grad_out, 0, kCut, std::numeric_limits<double>::infinity());
    const Backward by_queries(Context(), shape, queries, whole);
    QST_ASSERT_OK(by_queries.status);
    EXPECT_EQ(by_queries.k.Bits(kCut, kLength), expected.k.Bits(kCut, kLength));
    EXPECT_EQ(by_queries.v.Bits(kCut, kLength), expected.v.Bits(kCut, kLength));
    // Those that see one do not hide it.
    for (const double value : RowsOf(by_keys.q.ToDouble(), kCut, kLength).values) EXPECT_FALSE(std::isfinite(value));
    for (const TestMatrix* const grad : {&by_queries.k, &by_queries.v}) {
      for (const double value : RowsOf(grad->ToDouble(), 0, kCut).values) EXPECT_FALSE(std::isfinite(value));
    }
  }
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  const AttentionShape shape = Shape(2, 2, 4);
  Operands x(shape, 80, 80, 19);
  for (double& value : x.q.values) value *= 64.0;
  const Indices whole = {0, 80};
  const AttentionResult expected = ReferenceAttention(shape, x.q, x.k, x.v, whole, whole);
  const Forward actual(Context(), shape, x.q, x.k, x.v, whole, whole);
  QST_ASSERT_OK(actual.status);
  // Scores of some hundreds: their own rounding is an absolute error of the exponent.
  EXPECT_TRUE(IsClose(actual.out, expected.out, 512.0 * Tolerance(shape.head_dim)));
}

TEST_P(AttentionTest, WorksWithoutLogSumExpAndOnNothing) {
  const AttentionShape shape = Shape(2, 1, 8);
  const Operands x(shape, 5, 5, 20);
  const Indices whole = {0, 5};
  const Forward with(Context(1), shape, x.q, x.k, x.v, whole, whole);
  TestMatrix out(5, 16);
  QST_ASSERT_OK(Attention(Context(1), shape, TestMatrix(x.q), TestMatrix(x.k), TestMatrix(x.v), View(whole),
                          View(whole), out, nullptr));
  EXPECT_EQ(out.Bits(), with.out.Bits());
  const Operands none(shape, 0, 0, 21);
  QST_EXPECT_OK(Forward(Context(), shape, none.q, none.k, none.v, {0}, {0}).status);
  QST_EXPECT_OK(Forward(Context(), shape, none.q, none.k, none.v, {0, 0, 0}, {0, 0, 0}).status);
  QST_EXPECT_OK(Backward(Context(), shape, none, {0, 0}).status);
}

TEST_P(AttentionTest, RefusesOperandsThatDisagree) {
  const AttentionShape shape = Shape(4, 2, 8);
  const Operands x(shape, 6, 6, 22);
  const auto run = [&](const AttentionShape& s, const Indices& q_offsets, const Indices& k_offsets) {
    return Forward(Context(), s, x.q, x.k, x.v, q_offsets, k_offsets).status;
  };
  QST_EXPECT_OK(run(shape, {0, 6}, {0, 6}));
  EXPECT_THAT(run(Shape(4, 3, 8), {0, 6}, {0, 6}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("does not divide num_heads 4")));
  EXPECT_THAT(run(Shape(0, 2, 8), {0, 6}, {0, 6}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(run(Shape(4, 2, 16), {0, 6}, {0, 6}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q is")));
  EXPECT_THAT(run(Shape(4, 4, 8), {0, 6}, {0, 6}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("k is")));
  EXPECT_THAT(run(shape, {0, 3, 6}, {0, 6}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 query sequences")));
  if (IsCuda()) return;  // Offsets are the device's there.
  EXPECT_THAT(run(shape, {0, 5}, {0, 6}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q_offsets ends at 5, need 6 rows")));
  EXPECT_THAT(run(shape, {1, 6}, {0, 6}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("q_offsets[0]")));
  EXPECT_THAT(run(shape, {0, 4, 2, 6}, {0, 2, 4, 6}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("falls from 4 to 2 at sequence 1")));
  EXPECT_THAT(run(shape, {0, 3, 6}, {0, 2, 6}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sequence 0 has 3 queries, but only 2 keys")));
}

TEST_P(AttentionTest, HalfPrecisionWindowsMatchReference) {
  if (!IsCuda()) GTEST_SKIP() << "the CPU backend computes attention in f32";
  constexpr std::int32_t kLength = 150;
  for (AttentionShape shape : {Shape(6, 2, 64), Shape(4, 2, 32), Shape(2, 2, 128), Shape(4, 1, 80), Shape(1, 1, 256)}) {
    for (const std::int64_t window : {1, 40, 64, 100}) {
      SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim
                                        << ", window " << window);
      shape.window = window;
      const Operands x(shape, kLength, kLength, 31);
      const Indices whole = {0, kLength};
      const AttentionResult expected = ReferenceAttention(shape, Rounded(x.q, DType::kBF16), Rounded(x.k, DType::kBF16),
                                                          Rounded(x.v, DType::kBF16), whole, whole);
      const auto run = [&](std::int32_t begin, std::int32_t end) {
        TestMatrix out(end - begin, x.q.cols, DType::kBF16, 0, TestStart::kAligned);
        QST_EXPECT_OK(Attention(Context(), shape,
                                TestMatrix(RowsOf(x.q, begin, end), DType::kBF16, 0, TestStart::kAligned),
                                TestMatrix(RowsOf(x.k, 0, end), DType::kBF16, 0, TestStart::kAligned),
                                TestMatrix(RowsOf(x.v, 0, end), DType::kBF16, 0, TestStart::kAligned),
                                View({0, end - begin}), View({0, end}), out, nullptr));
        return out;
      };
      const TestMatrix out = run(0, kLength);
      EXPECT_TRUE(IsClose(out, expected.out, 3.0 * RoundingError(DType::kBF16)));
      // The same bits, however the rows are cut.
      for (const auto& [begin, end] : {std::pair<std::int32_t, std::int32_t>{149, 150}, {63, 110}}) {
        EXPECT_EQ(run(begin, end).Bits(), out.Bits(begin, end)) << begin << " to " << end;
      }
    }
  }
}

// Heads of every width in half precision: what rounding the operands and the result leaves of the reference.
TEST_P(AttentionTest, HalfPrecisionMatchesReference) {
  if (!IsCuda()) GTEST_SKIP() << "the CPU backend computes attention in f32";
  std::vector<AttentionShape> shapes = Shapes();
  for (const std::int64_t width : {32, 80, 96, 128, 256}) shapes.push_back(Shape(4, 2, width));
  const Indices q_offsets = {0, 1, 1, 8, 71};
  const Indices k_offsets = {0, 4, 4, 11, 95};
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const AttentionShape& shape : shapes) {
      SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim
                                        << " " << DTypeName(dtype));
      const Operands x(shape, q_offsets.back(), k_offsets.back(), 24);
      const AttentionResult expected = ReferenceAttention(shape, Rounded(x.q, dtype), Rounded(x.k, dtype),
                                                          Rounded(x.v, dtype), q_offsets, k_offsets);
      // Aligned, as tensor cores want them; and so that they must not be used.
      for (const std::int64_t padding : {0, 8, 3}) {
        const TestStart start = padding == 3 ? TestStart::kMisaligned : TestStart::kAligned;
        TestMatrix out(x.q.rows, x.q.cols, dtype, padding, start);
        TestMatrix log_sum_exp(x.q.rows, shape.num_heads);
        QST_ASSERT_OK(Attention(Context(), shape, TestMatrix(x.q, dtype, padding, start),
                                TestMatrix(x.k, dtype, padding, start), TestMatrix(x.v, dtype, padding, start),
                                View(q_offsets), View(k_offsets), out, log_sum_exp.data()));
        // Probabilities may be rounded too before they meet the values.
        EXPECT_TRUE(IsClose(out, expected.out, 3.0 * RoundingError(dtype)));
        EXPECT_TRUE(IsClose(log_sum_exp, expected.log_sum_exp, 1e-4));
        EXPECT_TRUE(out.GuardsIntact());
        EXPECT_TRUE(log_sum_exp.GuardsIntact());
      }
    }
  }
}

// A row's bits depend on its own sequence up to it: not on the batch, nor on how many of its tokens come at once.
TEST_P(AttentionTest, HalfPrecisionRowsDependOnTheirPastAlone) {
  if (!IsCuda()) GTEST_SKIP() << "the CPU backend computes attention in f32";
  constexpr std::int32_t kLength = 150;
  for (const AttentionShape& shape : {Shape(6, 2, 64), Shape(2, 2, 128), Shape(4, 1, 80)}) {
    SCOPED_TRACE(::testing::Message() << shape.num_heads << "/" << shape.num_kv_heads << " x " << shape.head_dim);
    const Operands x(shape, kLength, kLength, 26);
    const auto run = [&](std::int64_t q_begin, std::int64_t end, const Indices& q_offsets, const Indices& k_offsets) {
      TestMatrix out(end - q_begin, x.q.cols, DType::kBF16, 0, TestStart::kAligned);
      QST_EXPECT_OK(Attention(Context(), shape,
                              TestMatrix(RowsOf(x.q, q_begin, end), DType::kBF16, 0, TestStart::kAligned),
                              TestMatrix(RowsOf(x.k, 0, end), DType::kBF16, 0, TestStart::kAligned),
                              TestMatrix(RowsOf(x.v, 0, end), DType::kBF16, 0, TestStart::kAligned), View(q_offsets),
                              View(k_offsets), out, nullptr));
      return out;
    };
    const TestMatrix whole = run(0, kLength, {0, kLength}, {0, kLength});
    for (const std::int32_t begin : {0, 63, 64, 100, 149}) {
      for (const std::int32_t end : {begin + 1, kLength}) {
        const TestMatrix part = run(begin, end, {0, end - begin}, {0, end});
        EXPECT_EQ(part.Bits(), whole.Bits(begin, end)) << begin << " to " << end;
      }
    }
    // As the first of two sequences.
    const TestMatrix packed = run(0, kLength, {0, 70, kLength}, {0, 70, kLength});
    EXPECT_EQ(packed.Bits(0, 70), whole.Bits(0, 70));
  }
}

TEST_P(AttentionTest, RefusesWhatThisBackendLacks) {
  if (IsCuda()) {
    const AttentionShape wide = Shape(1, 1, 257);
    const Operands x(wide, 2, 2, 25);
    EXPECT_THAT(Forward(Context(), wide, x.q, x.k, x.v, {0, 2}, {0, 2}).status,
                StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("at most 256")));
    return;
  }
  const AttentionShape shape = Shape(1, 1, 8);
  const DMatrix x = Random(23).NormalMatrix(2, 8);
  const Indices whole = {0, 2};
  TestMatrix out(2, 8);
  const TestMatrix narrow(x, DType::kBF16);
  EXPECT_THAT(Attention(Context(), shape, narrow, TestMatrix(x), TestMatrix(x), View(whole), View(whole), out, nullptr),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("q is bf16, need f32")));
  OpContext cuda = Context();
  cuda.device = DeviceType::kCuda;
  EXPECT_THAT(
      Attention(cuda, shape, TestMatrix(x), TestMatrix(x), TestMatrix(x), View(whole), View(whole), out, nullptr),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no CUDA stream")));
  OpContext no_threads = Context();
  no_threads.threads = nullptr;
  EXPECT_THAT(
      Attention(no_threads, shape, TestMatrix(x), TestMatrix(x), TestMatrix(x), View(whole), View(whole), out, nullptr),
      StatusIs(absl::StatusCode::kInvalidArgument));
}

QST_INSTANTIATE_OP_TEST(AttentionTest);

}  // namespace
}  // namespace qst
