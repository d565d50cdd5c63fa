// The domain on a fake executor: what is hard to bring about over a network.
#include "server/coordinator.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "server/job_store/in_memory_job_store.h"
#include "server/log.h"
#include "server/testing/fake_executor.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A store whose disk can be full.
class FaultyJobStore : public InMemoryJobStore {
 public:
  absl::Status UpdateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events,
                         Durability durability) override {
    if (is_full) return absl::ResourceExhaustedError("no space left");
    return InMemoryJobStore::UpdateJob(record, events, durability);
  }
  bool is_full = false;
};

class FakeLink : public WorkerLink {
 public:
  void Send(const v1::WorkerCommand& command) override { commands.push_back(command); }
  void Close(const absl::Status& status) override { closed = status; }

  int Count(v1::WorkerCommand::KindCase kind) const {
    return static_cast<int>(std::count_if(commands.begin(), commands.end(), [&](const v1::WorkerCommand& command) {
      return command.kind_case() == kind;
    }));
  }
  std::vector<v1::WorkerCommand> commands;
  std::optional<absl::Status> closed;
};

class CoordinatorTest : public testing::Test {
 protected:
  CoordinatorTest() {
    QST_EXPECT_OK(InitLog("off"));
    layout_.emplace(*StoreLayout::Open(testing::TempDir() + "/coordinator-" + RandomHex(12)));
    v1::Model model;
    model.set_name("m");
    model.set_state(v1::MODEL_STATE_READY);
    model.set_num_layers(6);
    ModelRecord record;
    record.name = "m";
    record.ready = model;
    QST_EXPECT_OK(store_.PutModel(record));
    DatasetRecord dataset;
    dataset.dataset.set_id("aa");
    dataset.dataset.set_file_name("d.jsonl");
    dataset.names = {"d"};
    QST_EXPECT_OK(store_.PutDataset(dataset));
    Restart();
  }
  ~CoordinatorTest() override { std::filesystem::remove_all(layout_->root()); }

  // Another coordinator on the same store.
  void Restart() {
    coordinator_.reset();
    executor_ = std::make_unique<FakeExecutor>();
    coordinator_ = std::make_unique<Coordinator>(executor_.get(), &store_, *layout_, CoordinatorOptions());
    QST_EXPECT_OK(coordinator_->Start());
    executor_->RunAll();
  }

  std::shared_ptr<FakeLink> Connect(const std::string& id, std::vector<v1::HostedPart> hosted = {},
                                    const std::string& incarnation = "first") {
    v1::Hello hello;
    hello.set_worker_id(id);
    hello.set_incarnation(incarnation);
    hello.set_host("h");
    hello.set_pid(1);
    hello.set_store_path(layout_->root());
    for (const v1::HostedPart& part : hosted) *hello.add_hosted() = part;
    auto link = std::make_shared<FakeLink>();
    const absl::Status status = coordinator_->OnHello(hello, link);
    if (!status.ok()) link->Close(status);
    executor_->RunAll();
    links_[id] = link;
    return link;
  }
  // A job on one worker, with all its parts there.
  std::string SubmitAndPlace() {
    v1::SubmitJobRequest request;
    request.mutable_spec()->set_model("m");
    request.mutable_spec()->mutable_data()->set_train("d");
    request.mutable_spec()->mutable_resources()->set_stages(1);
    request.mutable_spec()->mutable_resources()->set_workers(1);
    const auto job = coordinator_->jobs().Submit(request);
    EXPECT_TRUE(job.ok()) << job.status();
    executor_->RunAll();
    return job->id();
  }
  void Report(const std::string& worker, const std::string& job, std::uint64_t sequence, v1::JobReport report) {
    report.set_job_id(job);
    report.set_plan_id(job + "/1");
    report.set_report_sequence(sequence);
    v1::WorkerReport message;
    *message.mutable_job() = report;
    coordinator_->OnReport(worker, links_[worker].get(), message);
    executor_->RunAll();
  }
  void ReportState(const std::string& worker, const std::string& job, std::uint64_t sequence, v1::JobState state) {
    v1::JobReport report;
    report.mutable_state()->set_state(state);
    Report(worker, job, sequence, report);
  }
  v1::JobState StateOf(const std::string& job) { return coordinator_->jobs().Get(job)->state(); }
  std::vector<v1::HostedPart> PartsOf(const std::string& job) {
    std::vector<v1::HostedPart> parts(2);
    for (v1::HostedPart& part : parts) {
      part.set_job_id(job);
      part.set_plan_id(job + "/1");
    }
    parts[1].set_is_side(true);
    return parts;
  }

  FaultyJobStore store_;
  std::optional<StoreLayout> layout_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<Coordinator> coordinator_;
  std::map<std::string, std::shared_ptr<FakeLink>> links_;
};

TEST_F(CoordinatorTest, NothingIsSentToWorkersBeforeItIsStored) {
  const auto link = Connect("w0");
  store_.is_full = true;
  const std::string job = SubmitAndPlace();
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(link->Count(v1::WorkerCommand::kHost), 0);
  store_.is_full = false;
  Connect("w1");  // something changes: the queue is looked at again
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_PREPARING);
  EXPECT_EQ(link->Count(v1::WorkerCommand::kHost), 2);
}

TEST_F(CoordinatorTest, AReportThatCannotBeStoredIsNotAcknowledgedAndComesAgainInTheNextSession) {
  const auto link = Connect("w0");
  const std::string job = SubmitAndPlace();
  ReportState("w0", job, 1, v1::JOB_STATE_RUNNING);
  EXPECT_EQ(link->Count(v1::WorkerCommand::kJobAck), 1);
  store_.is_full = true;
  v1::JobReport metrics;
  metrics.set_metrics_json("{}");
  Report("w0", job, 2, metrics);
  EXPECT_EQ(link->Count(v1::WorkerCommand::kJobAck), 1);
  ASSERT_TRUE(link->closed.has_value());
  EXPECT_THAT(*link->closed, StatusIs(absl::StatusCode::kUnavailable));
  store_.is_full = false;
  const auto again = Connect("w0", PartsOf(job));
  Report("w0", job, 2, metrics);
  EXPECT_EQ(again->Count(v1::WorkerCommand::kJobAck), 1);
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_RUNNING);
}

TEST_F(CoordinatorTest, AnEndThatCannotBeStoredIsTriedAgainUntilItIs) {
  Connect("w0");
  const std::string job = SubmitAndPlace();
  ReportState("w0", job, 1, v1::JOB_STATE_RUNNING);
  store_.is_full = true;
  ReportState("w0", job, 2, v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(links_["w0"]->Count(v1::WorkerCommand::kRelease), 0);
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_RUNNING);
  store_.is_full = false;
  executor_->Advance(absl::Seconds(2));
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(links_["w0"]->Count(v1::WorkerCommand::kRelease), 1);
}

TEST_F(CoordinatorTest, LostReportsFailTheJobInsteadOfBeingPassedOver) {
  Connect("w0");
  const std::string job = SubmitAndPlace();
  ReportState("w0", job, 1, v1::JOB_STATE_RUNNING);
  ReportState("w0", job, 3, v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_FAILED);
  EXPECT_THAT(coordinator_->jobs().Get(job)->status_message(), HasSubstr("sent report 3 after report 1"));
}

TEST_F(CoordinatorTest, ReportsOfAPlanThatIsOverAreAcknowledgedAndThePlanIsReleased) {
  const auto link = Connect("w0");
  v1::JobReport report;
  report.mutable_state()->set_state(v1::JOB_STATE_RUNNING);
  Report("w0", "j-gone", 5, report);
  EXPECT_EQ(link->Count(v1::WorkerCommand::kJobAck), 1);
  ASSERT_EQ(link->Count(v1::WorkerCommand::kRelease), 1);
  EXPECT_EQ(link->commands.back().release().plan_id(), "j-gone/1");
}

TEST_F(CoordinatorTest, ProgressIsStoredNowAndThenAndAlwaysShown) {
  Connect("w0");
  const std::string job = SubmitAndPlace();
  ReportState("w0", job, 1, v1::JOB_STATE_RUNNING);
  const auto count_stored = [&] {
    const auto events = *store_.ListEvents(job, 0, 1000);
    return std::count_if(events.begin(), events.end(), [](const v1::JobEvent& event) { return event.has_progress(); });
  };
  int live = 0;
  for (int step = 1; step <= 10; ++step) {
    coordinator_->jobs().watchers()->Wait(job, store_.GetJob(job)->last_sequence,
                                          [&](absl::StatusOr<JobEventBatch> batch) {
                                            ASSERT_TRUE(batch.ok());
                                            live += static_cast<int>(batch->events.size());
                                          });
    v1::JobReport report;
    report.mutable_progress()->set_step(step);
    report.mutable_progress()->set_total_steps(100);
    Report("w0", job, 1 + step, report);
    EXPECT_EQ(coordinator_->jobs().Get(job)->progress().step(), step);
    executor_->Advance(absl::Milliseconds(100));
  }
  EXPECT_EQ(live, 10);
  EXPECT_EQ(count_stored(), 1);
  v1::JobReport last;
  last.mutable_progress()->set_step(100);
  last.mutable_progress()->set_total_steps(100);
  Report("w0", job, 12, last);
  EXPECT_EQ(count_stored(), 2);
}

TEST_F(CoordinatorTest, ACommandThatWasLostWithItsSessionIsSentAgain) {
  const auto link = Connect("w0");
  const std::string job = SubmitAndPlace();
  EXPECT_EQ(link->Count(v1::WorkerCommand::kHost), 2);
  coordinator_->OnSessionEnded("w0", link.get());
  const auto again = Connect("w0");
  EXPECT_EQ(again->Count(v1::WorkerCommand::kHost), 2);
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_PREPARING);
}

TEST_F(CoordinatorTest, APartThatIsGoneFromAWorkerThatReportedItQueuesTheJobAgain) {
  const auto link = Connect("w0");
  const std::string job = SubmitAndPlace();
  v1::WorkerReport ready;
  *ready.mutable_part()->mutable_part() = PartsOf(job)[0];
  ready.mutable_part()->set_state(v1::PART_STATE_READY);
  coordinator_->OnReport("w0", link.get(), ready);
  coordinator_->OnSessionEnded("w0", link.get());
  Connect("w0", {PartsOf(job)[1]});
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_QUEUED);
  const auto events = *store_.ListEvents(job, 0, 1000);
  EXPECT_TRUE(std::any_of(events.begin(), events.end(), [](const v1::JobEvent& event) {
    return absl::StrContains(event.state().message(), "came back without stage 0");
  }));
}

TEST_F(CoordinatorTest, AWorkerThatDoesNotConfirmTheReleaseIsTakenAsFreeInTheEnd) {
  Connect("w0");
  const std::string job = SubmitAndPlace();
  ReportState("w0", job, 1, v1::JOB_STATE_RUNNING);
  ReportState("w0", job, 2, v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(coordinator_->registry().IdleWorkers(), ElementsAre());
  for (int i = 0; i < 12; ++i) {
    executor_->Advance(absl::Seconds(1));
    coordinator_->OnReport("w0", links_["w0"].get(), [] {
      v1::WorkerReport heartbeat;
      heartbeat.mutable_heartbeat();
      return heartbeat;
    }());
  }
  EXPECT_THAT(coordinator_->registry().IdleWorkers(), ElementsAre("w0"));
}

TEST_F(CoordinatorTest, ACoordinatorThatStoodStillDoesNotBlameItsWorkers) {
  Connect("w0");
  const std::string job = SubmitAndPlace();
  // Suspended for a minute: timers and reports wait together.
  executor_->JumpTo(executor_->Now() + absl::Minutes(1));
  executor_->Advance(absl::ZeroDuration());
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_PREPARING);
  executor_->Advance(absl::Seconds(11));
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_QUEUED);
}

TEST_F(CoordinatorTest, JobsOfARestartedCoordinatorKeepTheirPlaceInTheQueue) {
  const std::string first = SubmitAndPlace();
  executor_->Advance(absl::Seconds(1));
  const std::string second = SubmitAndPlace();
  Connect("w0");
  ReportState("w0", first, 1, v1::JOB_STATE_RUNNING);
  EXPECT_EQ(StateOf(second), v1::JOB_STATE_QUEUED);
  Restart();
  executor_->Advance(absl::Seconds(21));
  EXPECT_EQ(StateOf(first), v1::JOB_STATE_QUEUED);
  Connect("w0", {}, "second");
  EXPECT_EQ(StateOf(first), v1::JOB_STATE_PREPARING);
  EXPECT_EQ(coordinator_->jobs().Get(first)->attempt(), 2u);
  EXPECT_EQ(StateOf(second), v1::JOB_STATE_QUEUED);
}

TEST_F(CoordinatorTest, WorkersAreTakenInOrderOfTheirIds) {
  for (const char* id : {"w10", "w2", "w1"}) Connect(id);
  EXPECT_THAT(coordinator_->registry().IdleWorkers(), ElementsAre("w1", "w2", "w10"));
}

TEST_F(CoordinatorTest, AJobWhoseModelChangedSinceItWasAcceptedFailsInsteadOfRunningOnAnother) {
  v1::SubmitJobRequest request;
  request.mutable_spec()->set_model("m");
  request.mutable_spec()->mutable_data()->set_train("d");
  request.mutable_spec()->mutable_resources()->set_stages(4);
  const std::string job = coordinator_->jobs().Submit(request)->id();
  ModelRecord record = **store_.FindModel("m");
  record.ready->set_num_layers(2);
  QST_ASSERT_OK(store_.PutModel(record));
  Connect("w0");
  EXPECT_EQ(StateOf(job), v1::JOB_STATE_FAILED);
  EXPECT_THAT(coordinator_->jobs().Get(job)->status_message(), HasSubstr("resources.stages"));
}

}  // namespace
}  // namespace qst
