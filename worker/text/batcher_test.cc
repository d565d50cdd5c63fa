#include "worker/text/batcher.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int64_t> RaggedLengths(int count) {
  std::vector<int64_t> lengths;
  for (int i = 0; i < count; ++i) lengths.push_back(1 + (i * 37) % 90);
  return lengths;
}

// From a second implementation of the documented algorithm, in Python.
TEST(ShuffledOrderTest, IsTheDocumentedAlgorithm) {
  EXPECT_THAT(ShuffledOrder(10, 42, 0), ElementsAre(9, 1, 4, 2, 8, 7, 6, 5, 3, 0));
  EXPECT_THAT(ShuffledOrder(10, 42, 1), ElementsAre(9, 4, 5, 3, 1, 0, 2, 8, 6, 7));
  EXPECT_THAT(ShuffledOrder(7, 0, 0), ElementsAre(5, 3, 2, 1, 0, 6, 4));
  EXPECT_THAT(ShuffledOrder(5, std::numeric_limits<uint64_t>::max(), 3), ElementsAre(2, 1, 3, 4, 0));
  EXPECT_THAT(ShuffledOrder(1, 7, 0), ElementsAre(0));
  EXPECT_TRUE(ShuffledOrder(0, 7, 0).empty());
}

TEST(BatcherTest, EveryEpochHasEveryExampleOnceInANewOrder) {
  BatcherOptions options;
  options.batch_size = 8;
  auto batcher = Batcher::Create(options, RaggedLengths(101));
  QST_ASSERT_OK(batcher);
  ASSERT_EQ(batcher->steps_per_epoch(), 13);
  std::vector<int64_t> first;
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> seen;
    for (int step = 0; step < 13; ++step) {
      const Batch batch = batcher->GetBatch(epoch * 13 + step);
      EXPECT_EQ(batch.epoch, epoch);
      EXPECT_EQ(batch.step_in_epoch, step);
      EXPECT_EQ(batch.ends_epoch, step == 12);
      int64_t count = 0;
      for (const auto& micro_batch : batch.micro_batches) {
        count += static_cast<int64_t>(micro_batch.size());
        seen.insert(seen.end(), micro_batch.begin(), micro_batch.end());
      }
      EXPECT_EQ(count, step == 12 ? 5 : 8) << "the last batch of an epoch takes what is left";
    }
    EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), 101);
    EXPECT_EQ(seen.size(), 101);
    if (epoch == 0) {
      first = seen;
    } else {
      EXPECT_NE(seen, first);
    }
  }
}

TEST(BatcherTest, ResumedRunSeesWhatAnUninterruptedOneSees) {
  BatcherOptions options;
  options.seed = 1234;
  options.batch_size = 7;
  options.micro_batch_tokens = 120;
  auto uninterrupted = Batcher::Create(options, RaggedLengths(50));
  QST_ASSERT_OK(uninterrupted);
  std::vector<Batch> expected;
  for (int step = 0; step < 30; ++step) expected.push_back(uninterrupted->GetBatch(step));
  for (const int start : {1, 7, 8, 15, 29}) {
    auto resumed = Batcher::Create(options, RaggedLengths(50));
    QST_ASSERT_OK(resumed);
    for (int step = start; step < 30; ++step) {
      EXPECT_EQ(resumed->GetBatch(step).micro_batches, expected[step].micro_batches)
          << "from " << start << ", " << step;
    }
  }
  EXPECT_EQ(uninterrupted->GetBatch(3).micro_batches, expected[3].micro_batches) << "going back";
}

TEST(BatcherTest, MicroBatchesHoldNoMoreTokensThanAllowed) {
  BatcherOptions options;
  options.batch_size = 16;
  options.micro_batch_tokens = 100;
  const std::vector<int64_t> lengths = RaggedLengths(64);
  auto batcher = Batcher::Create(options, lengths);
  QST_ASSERT_OK(batcher);
  for (int step = 0; step < 4; ++step) {
    for (const auto& micro_batch : batcher->GetBatch(step).micro_batches) {
      ASSERT_FALSE(micro_batch.empty());
      int64_t tokens = 0;
      for (const int64_t example : micro_batch) tokens += lengths[example];
      EXPECT_LE(tokens, 100);
    }
  }
}

TEST(BatcherTest, ExampleThatIsTooLongMakesAMicroBatchOfItsOwn) {
  BatcherOptions options;
  options.shuffle = false;
  options.batch_size = 5;
  options.micro_batch_tokens = 10;
  auto batcher = Batcher::Create(options, {4, 6, 25, 3, 8});
  QST_ASSERT_OK(batcher);
  EXPECT_THAT(batcher->GetBatch(0).micro_batches,
              ElementsAre(ElementsAre(0, 1), ElementsAre(2), ElementsAre(3), ElementsAre(4)));
}

TEST(BatcherTest, WithoutShuffleExamplesKeepTheirOrderInEveryEpoch) {
  BatcherOptions options;
  options.shuffle = false;
  options.batch_size = 3;
  auto batcher = Batcher::Create(options, {1, 1, 1, 1});
  QST_ASSERT_OK(batcher);
  EXPECT_THAT(batcher->GetBatch(0).micro_batches, ElementsAre(ElementsAre(0, 1, 2)));
  EXPECT_THAT(batcher->GetBatch(5).micro_batches, ElementsAre(ElementsAre(3)));
  EXPECT_EQ(batcher->GetBatch(5).epoch, 2);
}

TEST(BatcherTest, BatchLargerThanTheDataIsOneStepAnEpoch) {
  BatcherOptions options;
  options.batch_size = std::numeric_limits<int64_t>::max();
  options.micro_batch_tokens = std::numeric_limits<int64_t>::max();
  auto batcher = Batcher::Create(options, {5, 6, 7});
  QST_ASSERT_OK(batcher);
  EXPECT_EQ(batcher->steps_per_epoch(), 1);
  EXPECT_EQ(batcher->GetBatch(9).micro_batches.front().size(), 3);
}

TEST(BatcherTest, RefusesWhatCannotBeBatched) {
  BatcherOptions options;
  EXPECT_THAT(Batcher::Create(options, {}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Batcher::Create(options, {3, 0}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("example 1")));
  options.batch_size = 0;
  EXPECT_THAT(Batcher::Create(options, {3}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("batch_size")));
  options.batch_size = 1;
  options.micro_batch_tokens = -1;
  EXPECT_THAT(Batcher::Create(options, {3}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("micro_batch")));
}

}  // namespace
}  // namespace qst
