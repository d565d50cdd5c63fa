#include "client/progress_view.h"

#include <sstream>

#include "client/format.h"
#include "client/job_reporter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

JobView Running(uint64_t step, uint64_t total) {
  JobView view;
  view.state = v1::JOB_STATE_RUNNING;
  view.progress.set_step(step);
  view.progress.set_total_steps(total);
  view.progress.set_epoch(1.234);
  view.progress.set_loss(2.34149);
  view.progress.set_tokens_per_second(812.4);
  view.progress.set_eta_s(65);
  return view;
}

v1::JobEvent StateEvent(v1::JobState state, const std::string& message = "") {
  v1::JobEvent event;
  event.mutable_state()->set_to(state);
  event.mutable_state()->set_message(message);
  return event;
}

v1::JobEvent ProgressEvent(int64_t time_ms, uint64_t step, uint64_t total) {
  v1::JobEvent event;
  event.set_time_ms(time_ms);
  *event.mutable_progress() = Running(step, total).progress;
  return event;
}

TEST(ProgressViewTest, LineShowsBarEpochStepLossSpeedAndTimeLeft) {
  EXPECT_EQ(TerminalLine(Running(60, 150), 100),
            "RUNNING [=========>                 ]  40%  epoch 1.23  step 60/150  loss 2.341  812 tok/s  ETA 1:05");
  EXPECT_EQ(PlainLine(Running(60, 150)), "step 60/150 (40%)  epoch 1.23  loss 2.341  812 tok/s  ETA 1:05");
}

TEST(ProgressViewTest, LineNeverExceedsItsWidth) {
  for (int width = 1; width < 200; ++width) {
    EXPECT_LE(TextWidth(TerminalLine(Running(60, 150), width)), static_cast<size_t>(width));
    JobView waiting;
    waiting.state = v1::JOB_STATE_QUEUED;
    waiting.status_message = "waits for 3 workers\n\x1b[31mb\xc3\xb6se";
    EXPECT_LE(TextWidth(TerminalLine(waiting, width)), static_cast<size_t>(width));
    EXPECT_THAT(TerminalLine(waiting, width), Not(HasSubstr("\x1b")));
  }
}

TEST(ProgressViewTest, UnknownsAreLeftOut) {
  JobView view = Running(0, 150);
  view.progress.clear_loss();
  view.progress.clear_tokens_per_second();
  view.progress.clear_eta_s();
  EXPECT_EQ(PlainLine(view), "step 0/150 (0%)  epoch 1.23");
  view.progress.set_total_steps(0);
  view.status_message = "loads weights";
  EXPECT_EQ(TerminalLine(view, 80), "RUNNING  loads weights");
}

TEST(ProgressViewTest, BarIsEmptyAtZeroAndFullAtOne) {
  EXPECT_EQ(ProgressBar(0, 6), "[    ]");
  EXPECT_EQ(ProgressBar(0.5, 6), "[=>  ]");
  EXPECT_EQ(ProgressBar(0.999, 6), "[==> ]");
  EXPECT_EQ(ProgressBar(1, 6), "[====]");
  EXPECT_EQ(ProgressBar(7, 6), "[====]");
  EXPECT_EQ(ProgressBar(-1, 1), "[ ]");
}

TEST(ProgressViewTest, EvaluationsOfMetricsLinesAreShown) {
  EXPECT_EQ(EvaluationLine(R"({"step": 150, "eval": {"accuracy": 0.9142, "loss": 0.30214}})"),
            "evaluation at step 150: accuracy 0.9142, loss 0.3021");
  EXPECT_EQ(EvaluationLine(R"({"step": 1, "loss": 0.5})"), "");
  EXPECT_EQ(EvaluationLine(R"({"step": 1, "eval": 3})"), "");
  EXPECT_EQ(EvaluationLine("{"), "");
  EXPECT_EQ(EvaluationLine("[1]"), "");
}

TEST(ProgressViewTest, ModelLineShowsShareAndStatus) {
  v1::Model model;
  model.set_bytes_done(120 << 20);
  model.set_bytes_total(300 << 20);
  model.set_status_message("layer 12");
  EXPECT_EQ(ModelLine(model, 100), "importing [=======>              ]  40%  120.0 MiB / 300.0 MiB  layer 12");
  EXPECT_EQ(ModelLine(v1::Model(), 100), "importing");
}

TEST(JobReporterTest, TerminalKeepsOneLineBelowThePermanentOnes) {
  std::ostringstream out;
  JobReporter reporter(out, {false, true, 90});
  reporter.OnEvent(StateEvent(v1::JOB_STATE_RUNNING));
  reporter.OnEvent(ProgressEvent(0, 1, 10));
  reporter.OnEvent(ProgressEvent(1, 2, 10));
  v1::JobEvent evaluation;
  evaluation.set_metrics_json(R"({"step": 2, "eval": {"loss": 1.5}})");
  reporter.OnEvent(evaluation);
  // The evaluation takes the line's place, and the line is drawn again below it.
  EXPECT_THAT(out.str(), EndsWith("\r\x1b[Kevaluation at step 2: loss 1.500\n" + TerminalLine(reporter.view(), 90)));
  reporter.OnEvent(StateEvent(v1::JOB_STATE_EVALUATING));
  EXPECT_THAT(out.str(), EndsWith("\r\x1b[K" + TerminalLine(reporter.view(), 90)));
  EXPECT_THAT(out.str(), Not(HasSubstr("EVALUATING\n")));
  reporter.OnEvent(StateEvent(v1::JOB_STATE_SUCCEEDED));
  EXPECT_THAT(out.str(), EndsWith("\r\x1b[KSUCCEEDED\n"));
  const std::string before = out.str();
  reporter.Finish();
  EXPECT_EQ(out.str(), before);
  EXPECT_EQ(reporter.state(), v1::JOB_STATE_SUCCEEDED);
}

TEST(JobReporterTest, PlainProgressComesEveryTenthOrFiveSeconds) {
  std::ostringstream out;
  JobReporter reporter(out, {false, false, 80});
  reporter.OnEvent(StateEvent(v1::JOB_STATE_RUNNING));
  for (uint64_t step = 1; step <= 1000; ++step) reporter.OnEvent(ProgressEvent(step, step, 1000));
  std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1 + 1 + 10);
  EXPECT_THAT(text, HasSubstr("\nstep 1/1000"));
  EXPECT_THAT(text, HasSubstr("\nstep 1000/1000 (100%)"));

  std::ostringstream slow_out;
  JobReporter slow(slow_out, {false, false, 80});
  for (int64_t second = 0; second <= 20; ++second) slow.OnEvent(ProgressEvent(1000 * second, 1 + second, 100000));
  text = slow_out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1 + 4);
}

TEST(JobReporterTest, JsonHasEveryEventAndNothingElse) {
  std::ostringstream out;
  JobReporter reporter(out, {true, true, 80});
  reporter.OnEvent(StateEvent(v1::JOB_STATE_RUNNING, "a"));
  v1::JobEvent metrics;
  metrics.set_sequence(2);
  metrics.set_metrics_json(R"({"step":1,"loss":0.5})");
  reporter.OnEvent(metrics);
  reporter.OnNotice("lost the coordinator");
  reporter.Finish();
  EXPECT_EQ(out.str(),
            R"({"event":{"sequence":0,"time_ms":0,"state":{"from":"UNSPECIFIED","to":"RUNNING","message":"a"}}})"
            "\n"
            R"({"event":{"sequence":2,"time_ms":0,"metrics":{"step":1,"loss":0.5}}})"
            "\n");
}

TEST(FormatTest, NumbersReadWell) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "16384.0 PiB");
  EXPECT_EQ(FormatCount(9999), "9999");
  EXPECT_EQ(FormatCount(134515008), "134.5 M");
  EXPECT_EQ(FormatSeconds(7.4), "0:07");
  EXPECT_EQ(FormatSeconds(11100), "3:05:00");
  EXPECT_EQ(FormatSeconds(-1), "-");
  EXPECT_EQ(FormatMetric(0.91423), "0.9142");
  EXPECT_EQ(FormatMetric(0), "0.0000");
  EXPECT_EQ(FormatMetric(12345.6), "12346");
  EXPECT_EQ(FormatMetric(1.5e-7), "1.5e-07");
}

TEST(FormatTest, TablesAlignByCharacters) {
  EXPECT_EQ(FormatTable({{"A", "N"}, {"\xc3\xb6\xc3\xb6", "5"}, {"b", "123"}}, {1}),
            "A     N\n\xc3\xb6\xc3\xb6    5\nb   123\n");
  EXPECT_EQ(Fit("\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6\xc3\xb6", 4), "\xc3\xb6...");
  EXPECT_EQ(Fit("abc", 3), "abc");
  EXPECT_EQ(OneLine(" a\nb\x1b[0m "), "a b [0m");
}

}  // namespace
}  // namespace qst
