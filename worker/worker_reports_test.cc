#include "worker/worker_reports.h"

#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

v1::JobReport Message(const std::string& plan, const std::string& text) {
  v1::JobReport report;
  report.set_plan_id(plan);
  report.set_message(text);
  return report;
}

v1::JobReport Progress(const std::string& plan, std::uint64_t step) {
  v1::JobReport report;
  report.set_plan_id(plan);
  report.mutable_progress()->set_step(step);
  return report;
}

v1::PartReport Part(const std::string& plan, v1::PartState state) {
  v1::PartReport report;
  report.mutable_part()->set_plan_id(plan);
  report.set_state(state);
  return report;
}

// Everything that is there now.
std::vector<v1::WorkerReport> TakeAll(WorkerReports& reports) {
  std::vector<v1::WorkerReport> all;
  while (auto report = reports.Take(absl::InfinitePast())) all.push_back(*report);
  return all;
}

TEST(WorkerReportsTest, JobReportsAreNumberedInEachPlanAndSentInOrder) {
  WorkerReports reports;
  reports.BeginSession();
  reports.AddJob(Message("a", "1"));
  reports.AddJob(Message("b", "1"));
  reports.AddJob(Message("a", "2"));
  std::map<std::string, std::uint64_t> last;
  for (const v1::WorkerReport& report : TakeAll(reports)) {
    EXPECT_EQ(report.job().report_sequence(), ++last[report.job().plan_id()]);
    EXPECT_GT(report.job().time_ms(), 0);
  }
  EXPECT_EQ(last["a"], 2u);
  EXPECT_EQ(last["b"], 1u);
}

TEST(WorkerReportsTest, NewSessionSendsAgainWhatWasNotAcknowledged) {
  WorkerReports reports;
  reports.BeginSession();
  for (const char* text : {"1", "2", "3"}) reports.AddJob(Message("a", text));
  EXPECT_EQ(TakeAll(reports).size(), 3u);
  reports.AcknowledgeJob("a", 1);
  reports.EndSession();
  reports.AddJob(Message("a", "4"));
  EXPECT_TRUE(TakeAll(reports).empty());
  reports.BeginSession();
  const auto again = TakeAll(reports);
  ASSERT_EQ(again.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(again[i].job().report_sequence(), i + 2);
  reports.AcknowledgeJob("a", 4);
  reports.BeginSession();
  EXPECT_TRUE(TakeAll(reports).empty());
}

TEST(WorkerReportsTest, ProgressWithoutASessionTakesOneReport) {
  WorkerReports reports;
  reports.BeginSession();
  reports.AddJob(Progress("a", 1));
  EXPECT_EQ(TakeAll(reports).size(), 1u);
  reports.EndSession();
  for (std::uint64_t step = 2; step < 1000; ++step) reports.AddJob(Progress("a", step));
  reports.AddJob(Message("a", "half"));
  for (std::uint64_t step = 1000; step < 2000; ++step) reports.AddJob(Progress("a", step));
  reports.BeginSession();
  const auto all = TakeAll(reports);
  ASSERT_EQ(all.size(), 3u);  // the first again, the newest, the message
  EXPECT_EQ(all[1].job().progress().step(), 1999u);
  EXPECT_EQ(all[2].job().message(), "half");
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(all[i].job().report_sequence(), i + 1);
}

TEST(WorkerReportsTest, NewestPartStateIsSentAgainUntilThePartIsReleased) {
  WorkerReports reports;
  reports.BeginSession();
  reports.AddPart(Part("a", v1::PART_STATE_LOADING));
  reports.AddPart(Part("a", v1::PART_STATE_READY));
  auto all = TakeAll(reports);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].part().state(), v1::PART_STATE_READY);
  reports.BeginSession();
  EXPECT_EQ(TakeAll(reports).size(), 1u);
  reports.AddPart(Part("a", v1::PART_STATE_RELEASED));
  EXPECT_EQ(TakeAll(reports).size(), 1u);
  reports.BeginSession();
  EXPECT_TRUE(TakeAll(reports).empty());
}

TEST(WorkerReportsTest, ForgottenJobsAreNotSentAgain) {
  WorkerReports reports;
  reports.AddJob(Message("a", "1"));
  reports.ForgetJob("a");
  reports.BeginSession();
  EXPECT_TRUE(TakeAll(reports).empty());
}

TEST(WorkerReportsTest, EndOfTheSessionWakesTheSender) {
  WorkerReports reports;
  reports.BeginSession();
  std::thread ender([&reports] { reports.EndSession(); });
  EXPECT_FALSE(reports.Take(absl::InfiniteFuture()).has_value());
  ender.join();
}

TEST(WorkerReportsTest, DrainWaitsUntilASessionTookAll) {
  WorkerReports reports;
  EXPECT_TRUE(reports.Drain(absl::InfinitePast()));
  reports.AddJob(Message("a", "1"));
  EXPECT_FALSE(reports.Drain(absl::InfinitePast()));
  reports.BeginSession();
  std::thread sender([&reports] { TakeAll(reports); });
  EXPECT_TRUE(reports.Drain(absl::Now() + absl::Seconds(30)));
  sender.join();
}

TEST(WorkerReportsTest, OutcomeOfATaskIsRepeatedUntilItIsForgotten) {
  WorkerReports reports;
  reports.BeginSession();
  v1::TaskReport report;
  report.set_task_id("t-1");
  report.mutable_progress()->set_bytes_done(1);
  reports.AddTask(report);
  report.mutable_error()->set_message("gone");
  reports.AddTask(report);
  std::vector<v1::WorkerReport> taken = TakeAll(reports);
  ASSERT_EQ(taken.size(), 1u) << "the newest replaces the one before";
  EXPECT_EQ(taken[0].task().error().message(), "gone");
  EXPECT_TRUE(TakeAll(reports).empty());
  reports.EndSession();
  reports.BeginSession();
  EXPECT_EQ(TakeAll(reports).size(), 1u);
  reports.ForgetTask("t-1");
  reports.EndSession();
  reports.BeginSession();
  EXPECT_TRUE(TakeAll(reports).empty());
}

}  // namespace
}  // namespace qst
