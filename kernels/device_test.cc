#include "kernels/device.h"

#include <atomic>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryIndexIsVisitedOnceInRangesOfWholeGrains) {
  ThreadPool pool(GetParam());
  for (std::int64_t n : {0, 1, 2, 3, 7, 8, 100, 1001}) {
    for (std::int64_t grain : {1, 3, 8, 2000}) {
      std::vector<std::atomic<int>> visits(n);
      std::atomic<int> misaligned{0};
      pool.ParallelFor(n, grain, [&](std::int64_t begin, std::int64_t end) {
        if (begin % grain != 0 || (end % grain != 0 && end != n) || begin >= end) ++misaligned;
        for (std::int64_t i = begin; i < end; ++i) ++visits[i];
      });
      EXPECT_EQ(misaligned, 0) << "n " << n << ", grain " << grain;
      for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(visits[i], 1) << "n " << n << ", grain " << grain;
    }
  }
}

TEST_P(ThreadPoolTest, PlainWritesOfTheBodyAreSeenByTheCaller) {
  ThreadPool pool(GetParam());
  std::vector<std::int64_t> values(512);
  for (int round = 0; round < 2000; ++round) {
    pool.ParallelFor(values.size(), 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) values[i] = i + round;
    });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), std::int64_t{0}), 512 * 511 / 2 + 512 * round);
  }
}

TEST_P(ThreadPoolTest, ConcurrentCallersAreServedInTurn) {
  ThreadPool pool(GetParam());
  std::atomic<std::int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        pool.ParallelFor(64, 1, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 3 * 200 * 64);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST(ThreadPoolTest, WorkIsSharedAmongThreads) {
  ThreadPool pool(2);
  // Both ranges must be in progress at once: each waits for the other to have begun.
  std::atomic<int> begun{0};
  pool.ParallelFor(2, 1, [&](std::int64_t, std::int64_t) {
    ++begun;
    while (begun < 2) std::this_thread::yield();
  });
  EXPECT_EQ(begun, 2);
}

TEST(IsaTest, AutoResolvesToSomethingConcrete) {
  const auto isa = ResolveIsa(CpuIsa::kAuto);
  QST_ASSERT_OK(isa);
  EXPECT_NE(*isa, CpuIsa::kAuto);
  EXPECT_EQ(*ResolveIsa(*isa), *isa);
  EXPECT_EQ(*ResolveIsa(CpuIsa::kPortable), CpuIsa::kPortable);
}

TEST(IsaTest, NamesParseAndUnknownOnesAreRefused) {
  EXPECT_EQ(*ParseIsa("auto"), CpuIsa::kAuto);
  EXPECT_EQ(*ParseIsa("portable"), CpuIsa::kPortable);
  EXPECT_EQ(*ParseIsa("avx2"), CpuIsa::kAvx2);
  EXPECT_THAT(ParseIsa("sse9"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sse9")));
}

}  // namespace
}  // namespace qst
