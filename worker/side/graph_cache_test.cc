#include "worker/side/graph_cache.h"

#include <cstdint>
#include <functional>

#include "gtest/gtest.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "kernels/testing/test_memory.h"
#include "proto/support/status_matchers.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

class GraphCacheTest : public DeviceTest {
 protected:
  // Adds 1 to the sum.
  absl::Status Add() { return AddInto(ctx_, Matrix(one_.data(), 1, 1), Matrix(sum_.data(), 1, 1), true); }
  absl::Status Run(std::size_t unit = 0) {
    return graphs_.Run(unit, [this] { return Add(); });
  }
  float Sum() { return Synced(sum_)[0]; }
  void ExpectStats(std::int64_t plain, std::int64_t captured, std::int64_t replayed) const {
    const GraphStats& stats = graphs_.stats();
    EXPECT_EQ(stats.num_plain, plain);
    EXPECT_EQ(stats.num_captured, captured);
    EXPECT_EQ(stats.num_replayed, replayed);
  }

  TestVector<float> one_ = TestVector<float>(1, 1.0f);
  TestVector<float> sum_ = TestVector<float>(1, 0.0f);
  Arena arena_{ctx_};
  GraphCache graphs_{ctx_, &arena_};
};

TEST_P(GraphCacheTest, WithoutAShapeEverythingRunsPlainly) {
  for (int i = 0; i < 3; ++i) QST_ASSERT_OK(Run());
  EXPECT_EQ(Sum(), 3.0f);
  ExpectStats(3, 0, 0);
}

TEST_P(GraphCacheTest, AUnitRunsIsCapturedAndIsReplayed) {
  if (ctx_.device == DeviceType::kCpu) GTEST_SKIP() << "no graphs there";
  for (int i = 0; i < 5; ++i) {
    graphs_.Select({10, 2}, 2);
    QST_ASSERT_OK(Run(0));
    if (i % 2 == 0) QST_ASSERT_OK(Run(1));
  }
  EXPECT_EQ(Sum(), 8.0f);
  ExpectStats(2, 2, 4);
  // Another number of tokens or sequences is another shape.
  graphs_.Select({10, 3}, 2);
  QST_ASSERT_OK(Run());
  graphs_.Select({11, 2}, 2);
  QST_ASSERT_OK(Run());
  ExpectStats(4, 2, 4);
  EXPECT_EQ(Sum(), 10.0f);
}

TEST_P(GraphCacheTest, MemoryThatMovedMakesGraphsAnew) {
  if (ctx_.device == DeviceType::kCpu) GTEST_SKIP() << "no graphs there";
  const auto run = [&](std::int64_t num_floats) {
    QST_EXPECT_OK(arena_.Reset(num_floats));
    graphs_.Select({10, 2}, 1);
    QST_EXPECT_OK(Run());
  };
  for (int i = 0; i < 3; ++i) run(100);
  ExpectStats(1, 1, 1);
  run(1 << 20);
  ExpectStats(2, 1, 1);
  for (int i = 0; i < 2; ++i) run(100);
  ExpectStats(2, 2, 2);
  // Another place in the arena.
  QST_ASSERT_OK(arena_.Reset());
  QST_ASSERT_OK(arena_.Floats(100).status());
  QST_ASSERT_OK(Run());
  ExpectStats(3, 2, 2);
  // More scratch memory of the ops.
  run(100);
  run(100);
  const std::int64_t generation = DeviceMemoryGeneration(ctx_);
  const std::int64_t n = std::int64_t{1} << 22;
  const auto values = DeviceMemory::Allocate(ctx_, n * 4);
  auto sum = DeviceMemory::Allocate(ctx_, 8);
  QST_ASSERT_OK(values);
  QST_ASSERT_OK(sum);
  QST_ASSERT_OK(SumOfSquares(ctx_, values->as<float>(), n, sum->as<double>()));
  ASSERT_NE(DeviceMemoryGeneration(ctx_), generation);
  const std::int64_t plain = graphs_.stats().num_plain;
  run(100);
  EXPECT_EQ(graphs_.stats().num_plain, plain + 1);
  EXPECT_EQ(Sum(), 10.0f);
}

TEST_P(GraphCacheTest, TheShapeThatHasNotComeForLongestGoes) {
  if (ctx_.device == DeviceType::kCpu) GTEST_SKIP() << "no graphs there";
  const auto run = [&](std::int64_t num_tokens) {
    graphs_.Select({num_tokens, 1}, 1);
    QST_EXPECT_OK(Run());
  };
  const auto max = static_cast<std::int64_t>(GraphCache::kMaxShapes);
  for (std::int64_t i = 0; i < max; ++i) run(i);
  run(0);
  ExpectStats(max, 1, 0);
  run(max);  // in the place of 1
  run(0);
  ExpectStats(max + 1, 1, 1);
  run(1);
  ExpectStats(max + 2, 1, 1);
}

TEST_P(GraphCacheTest, WorkThatCannotBeCapturedRunsPlainlyFromThenOn) {
  if (ctx_.device == DeviceType::kCpu) GTEST_SKIP() << "no graphs there";
  const auto waiting = [&] {
    QST_RETURN_IF_ERROR(Add());
    return Synchronize(ctx_);
  };
  for (int i = 0; i < 3; ++i) {
    graphs_.Select({10, 2}, 2);
    QST_ASSERT_OK(Run(0));
    QST_ASSERT_OK(graphs_.Run(1, waiting));
    EXPECT_EQ(graphs_.stats().is_failed, i > 0);
  }
  EXPECT_EQ(Sum(), 6.0f);
  ExpectStats(5, 1, 0);
}

TEST_P(GraphCacheTest, ErrorsOfTheWorkComeBackAndItIsNotTakenToHaveRun) {
  graphs_.Select({10, 2}, 1);
  const auto broken = [] { return absl::DataLossError("mine"); };
  EXPECT_THAT(graphs_.Run(0, broken), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(graphs_.Run(0, broken), StatusIs(absl::StatusCode::kDataLoss));
  QST_ASSERT_OK(Run());
  EXPECT_FALSE(graphs_.stats().is_failed);
  EXPECT_EQ(Sum(), 1.0f);
}

QST_INSTANTIATE_DEVICE_TEST(GraphCacheTest);

}  // namespace
}  // namespace qst
