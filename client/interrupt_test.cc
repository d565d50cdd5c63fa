#include "client/interrupt.h"

#include <signal.h>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

TEST(InterruptTest, FirstSignalRunsTheCallback) {
  for (const int signal : {SIGINT, SIGTERM}) {
    absl::Notification interrupted;
    InterruptScope scope(true, [&interrupted] { interrupted.Notify(); });
    raise(signal);
    interrupted.WaitForNotification();
  }
}

TEST(InterruptTest, EndsWithoutASignal) {
  bool called = false;
  {
    InterruptScope scope(true, [&called] { called = true; });
  }
  {
    InterruptScope scope(false, [&called] { called = true; });
  }
  EXPECT_FALSE(called);
}

TEST(InterruptDeathTest, SecondSignalEndsTheProcess) {
  EXPECT_EXIT(
      {
        InterruptScope scope(true, [] {});
        raise(SIGINT);
        raise(SIGINT);
      },
      testing::ExitedWithCode(128 + SIGINT), "");
}

TEST(InterruptDeathTest, SignalsHaveTheirUsualEffectAfterwards) {
  EXPECT_EXIT(
      {
        {
          InterruptScope scope(true, [] {});
        }
        raise(SIGTERM);
      },
      testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace qst
