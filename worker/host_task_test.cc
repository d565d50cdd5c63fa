#include "worker/host_task.h"

#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

constexpr absl::Duration kLong = absl::Seconds(30);

v1::TaskCommand Command(const std::string& id, const std::string& text = "x") {
  v1::TaskCommand command;
  command.set_task_id(id);
  command.mutable_tokenize()->mutable_request()->set_text(text);
  return command;
}

class HostTaskTest : public testing::Test {
 protected:
  HostTaskTest() { reports_.BeginSession(); }

  // Answers with the text, once it is let go or cancelled.
  TaskRunner Runner() {
    return [this](const v1::TaskCommand& command, const TaskContext& context) -> absl::StatusOr<v1::TaskReport> {
      ++num_begun_;
      v1::TaskProgress progress;
      progress.set_bytes_total(1);
      context.on_progress(progress);
      const auto may_end = [&] { return may_end_.load() || context.is_cancelled.load(); };
      while (!may_end()) absl::SleepFor(absl::Milliseconds(1));
      if (context.is_cancelled) return absl::CancelledError("stopped");
      v1::TaskReport report;
      report.mutable_tokenize()->set_decoded(command.tokenize().request().text());
      return report;
    };
  }
  // The next report but progress.
  v1::TaskReport Outcome() {
    for (;;) {
      const auto report = reports_.Take(absl::Now() + kLong);
      EXPECT_TRUE(report.has_value() && report->has_task());
      if (!report.has_value()) return v1::TaskReport();
      if (!report->task().has_progress()) return report->task();
    }
  }
  void AwaitBegun(int num) {
    const absl::Time give_up = absl::Now() + kLong;
    while (num_begun_ < num && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(1));
    EXPECT_EQ(num_begun_, num);
  }

  WorkerReports reports_;
  std::atomic<int> num_begun_{0};
  std::atomic<bool> may_end_{false};
};

TEST_F(HostTaskTest, OutcomeIsReportedUntilTheCoordinatorHasIt) {
  may_end_ = true;
  HostTasks tasks(&reports_, Runner());
  tasks.Start(Command("a", "hello"));
  const v1::TaskReport report = Outcome();
  EXPECT_EQ(report.task_id(), "a");
  EXPECT_EQ(report.tokenize().decoded(), "hello");
  reports_.EndSession();
  reports_.BeginSession();
  EXPECT_EQ(Outcome().tokenize().decoded(), "hello");
  tasks.Start(Command("a"));
  EXPECT_EQ(num_begun_, 1) << "a command that comes again begins nothing";
  tasks.Cancel("a");
  reports_.EndSession();
  reports_.BeginSession();
  EXPECT_FALSE(reports_.Take(absl::InfinitePast()).has_value());
}

TEST_F(HostTaskTest, CancelEndsATaskThatRunsAndOneThatWaits) {
  HostTasks tasks(&reports_, Runner());
  for (int i = 0; i <= HostTasks::kMaxRunning; ++i) tasks.Start(Command(absl::StrCat("t", i)));
  AwaitBegun(HostTasks::kMaxRunning);
  const std::string waiting = absl::StrCat("t", HostTasks::kMaxRunning);
  tasks.Cancel(waiting);
  tasks.Cancel("t0");
  std::vector<std::string> cancelled;
  for (int i = 0; i < 2; ++i) {
    const v1::TaskReport report = Outcome();
    EXPECT_EQ(report.error().code(), static_cast<int>(absl::StatusCode::kCancelled));
    cancelled.push_back(report.task_id());
    // As the coordinator does with what it does not know any more.
    tasks.Cancel(report.task_id());
  }
  EXPECT_THAT(cancelled, testing::UnorderedElementsAre("t0", waiting));
  EXPECT_EQ(num_begun_, HostTasks::kMaxRunning);
}

TEST_F(HostTaskTest, NoMoreThanAFewRunAtATimeAndTheRestFollow) {
  HostTasks tasks(&reports_, Runner());
  constexpr int kNum = 2 * HostTasks::kMaxRunning;
  for (int i = 0; i < kNum; ++i) tasks.Start(Command(absl::StrCat("t", i)));
  AwaitBegun(HostTasks::kMaxRunning);
  may_end_ = true;
  for (int i = 0; i < kNum; ++i) EXPECT_TRUE(Outcome().has_tokenize());
  EXPECT_EQ(num_begun_, kNum);
}

TEST_F(HostTaskTest, TooManyAreRefusedAndNoneBeginsAfterShutdown) {
  HostTasks tasks(&reports_, Runner());
  for (int i = 0; i < HostTasks::kMaxRunning + HostTasks::kMaxWaiting; ++i) tasks.Start(Command(absl::StrCat("t", i)));
  tasks.Start(Command("u"));
  const v1::TaskReport report = Outcome();
  EXPECT_EQ(report.task_id(), "u");
  EXPECT_EQ(report.error().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  AwaitBegun(HostTasks::kMaxRunning);
  tasks.Shutdown();
  for (int i = 0; i < HostTasks::kMaxRunning; ++i) {
    EXPECT_EQ(Outcome().error().code(), static_cast<int>(absl::StatusCode::kCancelled));
  }
  EXPECT_EQ(num_begun_, HostTasks::kMaxRunning);
}

}  // namespace
}  // namespace qst
