#include "worker/side/arena.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device_memory.h"
#include "proto/support/status_matchers.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

class ArenaTest : public DeviceTest {
 protected:
  ArenaTest() : arena_(ctx_) {}
  // Aligned, and writable from end to end.
  float* Take(std::int64_t num) {
    const auto memory = arena_.Floats(num);
    QST_EXPECT_OK(memory);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(*memory) % 64, 0u);
    QST_EXPECT_OK(FillZero(ctx_, *memory, num * 4));
    return *memory;
  }

  Arena arena_;
};

TEST_P(ArenaTest, ARewindHandsTheSameMemoryOutAgain) {
  Take(5);
  const Arena::Mark mark = arena_.GetMark();
  float* const first = Take(100);
  const float* const second = Take(1);
  EXPECT_EQ(second, first + 112);  // a cache line further
  arena_.Rewind(mark);
  EXPECT_EQ(Take(100), first);
}

TEST_P(ArenaTest, AScopeGivesBackWhatItTookAlsoInNewBlocks) {
  Take(1);
  const Arena::Mark mark = arena_.GetMark();
  {
    const ArenaScope scope(&arena_);
    Take(1 << 19);  // beyond the first block
    Take(7);
  }
  EXPECT_EQ(arena_.GetMark().block, mark.block);
  EXPECT_EQ(arena_.GetMark().used, mark.used);
  const std::int64_t capacity = arena_.capacity_bytes();
  Take(1 << 19);
  EXPECT_EQ(arena_.capacity_bytes(), capacity);
}

TEST_P(ArenaTest, AResetMakesOneBlockOfSeveral) {
  Take(1 << 18);
  Take(1 << 18);
  Take(1);
  const std::int64_t capacity = arena_.capacity_bytes();
  QST_ASSERT_OK(arena_.Reset());
  EXPECT_EQ(arena_.capacity_bytes(), capacity);
  Take(3 << 18);
  EXPECT_EQ(arena_.capacity_bytes(), capacity);
}

TEST_P(ArenaTest, AResetMakesRoomForWhatIsExpectedAndKeepsIt) {
  QST_ASSERT_OK(arena_.Reset(1000));
  EXPECT_EQ(arena_.capacity_bytes(), 1008 * 4);
  const float* const memory = Take(1000);
  QST_ASSERT_OK(arena_.Reset(10));
  EXPECT_EQ(Take(10), memory);
  EXPECT_EQ(arena_.capacity_bytes(), 1008 * 4);
}

TEST_P(ArenaTest, IntsAndEmptyMatricesAreMemoryToo) {
  const auto ints = arena_.Ints(3);
  QST_ASSERT_OK(ints);
  const std::vector<std::int32_t> expected = {1, -2, 1 << 30};
  QST_ASSERT_OK(Upload(ctx_, expected.data(), 12, *ints));
  const auto empty = arena_.Float(0, 8);
  QST_ASSERT_OK(empty);
  EXPECT_NE(empty->data, nullptr);
  EXPECT_EQ(empty->rows, 0);
  std::vector<std::int32_t> actual(3);
  QST_ASSERT_OK(Download(ctx_, *ints, 12, actual.data()));
  EXPECT_EQ(actual, expected);
}

TEST_P(ArenaTest, SaysWhenThereIsNoMemory) {
  EXPECT_THAT(arena_.Floats(std::int64_t{1} << 55), StatusIs(absl::StatusCode::kResourceExhausted));
  Take(3);
  EXPECT_THAT(arena_.Reset(std::int64_t{1} << 55), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(arena_.capacity_bytes(), 0);
  Take(3);
}

QST_INSTANTIATE_DEVICE_TEST(ArenaTest);

}  // namespace
}  // namespace qst
