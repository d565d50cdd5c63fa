#include "worker/stream/device_timer.h"

#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

class DeviceTimerTest : public DeviceTest {};
QST_INSTANTIATE_DEVICE_TEST(DeviceTimerTest);

TEST_P(DeviceTimerTest, NothingTookNoTime) {
  DeviceTimer timer(ctx_);
  const auto total = timer.Total();
  QST_ASSERT_OK(total);
  EXPECT_EQ(*total, absl::ZeroDuration());
}

TEST_P(DeviceTimerTest, StretchesAddUp) {
  constexpr std::int64_t kBytes = 32 << 20;
  auto memory = DeviceMemory::Allocate(ctx_, kBytes);
  QST_ASSERT_OK(memory);
  DeviceTimer timer(ctx_);
  absl::Duration before;
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 4; ++k) {
      QST_ASSERT_OK(timer.Begin());
      QST_ASSERT_OK(FillZero(ctx_, memory->data(), kBytes));
      QST_ASSERT_OK(timer.End());
    }
    const auto total = timer.Total();
    QST_ASSERT_OK(total);
    EXPECT_GT(*total, before);
    before = *total;
  }
}

TEST_P(DeviceTimerTest, WorkBetweenStretchesDoesNotCount) {
  constexpr std::int64_t kBytes = 64 << 20;
  auto memory = DeviceMemory::Allocate(ctx_, kBytes);
  QST_ASSERT_OK(memory);
  DeviceTimer inside(ctx_);
  DeviceTimer outside(ctx_);
  QST_ASSERT_OK(outside.Begin());
  QST_ASSERT_OK(inside.Begin());
  QST_ASSERT_OK(inside.End());
  for (int i = 0; i < 4; ++i) QST_ASSERT_OK(FillZero(ctx_, memory->data(), kBytes));
  QST_ASSERT_OK(outside.End());
  const auto inner = inside.Total();
  const auto outer = outside.Total();
  QST_ASSERT_OK(inner);
  QST_ASSERT_OK(outer);
  EXPECT_LT(*inner, *outer);
}

}  // namespace
}  // namespace qst
