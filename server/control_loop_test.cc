#include "server/control_loop.h"

#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/clock.h"

namespace qst {
namespace {

using ::testing::ElementsAre;

TEST(ControlLoopTest, RunsTasksInOrderOnItsOwnThread) {
  SystemClock clock;
  ControlLoop loop(&clock);
  std::vector<int> order;
  EXPECT_FALSE(loop.IsCurrent());
  for (int i = 0; i < 3; ++i) {
    loop.Post([&, i] {
      EXPECT_TRUE(loop.IsCurrent());
      order.push_back(i);
    });
  }
  EXPECT_TRUE(loop.RunAndWait([] {}));
  EXPECT_THAT(order, ElementsAre(0, 1, 2));
}

TEST(ControlLoopTest, TimersRunWhenTheClockSaysSoInOrderOfTime) {
  FakeClock clock;
  ControlLoop loop(&clock);
  std::vector<int> order;
  loop.PostAfter(absl::Seconds(2), [&] { order.push_back(2); });
  loop.PostAfter(absl::Seconds(1), [&] { order.push_back(1); });
  loop.PostAfter(absl::Seconds(1), [&] { order.push_back(11); });
  loop.PostAfter(absl::Hours(1), [&] { order.push_back(3600); });
  loop.RunAndWait([] {});
  EXPECT_THAT(order, ElementsAre());
  clock.Advance(absl::Seconds(2));
  loop.RunAndWait([] {});
  EXPECT_THAT(order, ElementsAre(1, 11, 2));
}

TEST(ControlLoopTest, ATimerOfTheSystemClockRunsByItself) {
  SystemClock clock;
  ControlLoop loop(&clock);
  absl::Notification done;
  loop.PostAfter(absl::Milliseconds(1), [&] { done.Notify(); });
  EXPECT_TRUE(done.WaitForNotificationWithTimeout(absl::Seconds(20)));
}

TEST(ControlLoopTest, StoppingRunsWhatWasPostedAndRefusesWhatComesLater) {
  SystemClock clock;
  ControlLoop loop(&clock);
  bool was_run = false;
  loop.Post([&] { was_run = true; });
  loop.PostAfter(absl::Hours(1), [] { FAIL() << "a timer ran that was not due"; });
  loop.Stop();
  EXPECT_TRUE(was_run);
  EXPECT_FALSE(loop.Post([] {}));
  EXPECT_FALSE(loop.RunAndWait([] {}));
}

TEST(ControlLoopTest, ManyThreadsMayPost) {
  SystemClock clock;
  ControlLoop loop(&clock);
  int count = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) loop.Post([&] { ++count; });
    });
  }
  for (std::thread& thread : threads) thread.join();
  loop.Stop();
  EXPECT_EQ(count, 4000);
}

}  // namespace
}  // namespace qst
