// Crashes, lost workers and failures through the whole coordinator: real gRPC, a real store, workers that do as told.
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "server/testing/placed_job_fixture.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

class ServerRecoveryTest : public PlacedJobFixture {};

TEST_F(ServerRecoveryTest, ARunningJobGoesOnAfterTheCoordinatorCrashedAndCameBack) {
  Run();
  side()->ReportMetrics(side_part(), 2, R"({"step":1})");
  AwaitEvent(job_id_, [](const v1::JobEvent& event) { return !event.metrics_json().empty(); });
  CrashServer();
  StartServer();
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_RUNNING);
  ReturnWorkers(3);
  AwaitMessage(job_id_, "all workers of the job came back");
  // What was not acknowledged comes again; what was stored already changes nothing.
  side()->ReportMetrics(side_part(), 2, R"({"step":1})");
  side()->ReportMetrics(side_part(), 3, R"({"step":2})");
  side()->ReportState(side_part(), 4, v1::JOB_STATE_SUCCEEDED);
  AwaitState(job_id_, v1::JOB_STATE_SUCCEEDED);
  Release();
  EXPECT_EQ(GetJob(job_id_).attempt(), 1u);
  std::vector<std::string> metrics;
  for (const v1::JobEvent& event : AllEvents(job_id_)) {
    if (!event.metrics_json().empty()) metrics.push_back(event.metrics_json());
  }
  EXPECT_THAT(metrics, testing::ElementsAre(R"({"step":1})", R"({"step":2})"));
}

TEST_F(ServerRecoveryTest, ARunningJobIsQueuedAgainIfAWorkerDoesNotComeBackAfterACrash) {
  Run();
  CrashServer();
  StartServer();
  ReturnWorkers(2);
  AdvanceWithHeartbeats(absl::Seconds(21));
  AwaitMessage(job_id_, "waiting for 3 idle cpu workers, ");
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_QUEUED);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(workers_[i]->Await(v1::WorkerCommand::kRelease).has_value());
    workers_[i]->ReportPart(parts_[i], v1::PART_STATE_RELEASED);
  }
  workers_.push_back(NewWorker("w2", {}, "second"));
  TakeParts();
  EXPECT_EQ(side_part().plan().plan_id(), job_id_ + "/2");
  EXPECT_EQ(GetJob(job_id_).attempt(), 2u);
  // Reports count from 1 again.
  side()->ReportState(side_part(), 1, v1::JOB_STATE_RUNNING);
  side()->ReportState(side_part(), 2, v1::JOB_STATE_SUCCEEDED);
  AwaitState(job_id_, v1::JOB_STATE_SUCCEEDED);
}

TEST_F(ServerRecoveryTest, AWorkerThatComesBackWithoutTheSideNetworkAfterACrashQueuesTheJobAgainAtOnce) {
  Run();
  CrashServer();
  StartServer();
  workers_.clear();
  workers_.push_back(NewWorker("w2", {}, "second"));
  AwaitMessage(job_id_, "waiting for 3 idle cpu workers, ");
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_QUEUED);
}

TEST_F(ServerRecoveryTest, AJobInPreparationIsPlacedAnewAfterACrash) {
  Place();
  const std::string old_plan = side_part().plan().plan_id();
  CrashServer();
  StartServer();
  ReturnWorkers(3);
  for (int i = 0; i < 3; ++i) {
    const auto release = workers_[i]->Await(v1::WorkerCommand::kRelease);
    ASSERT_TRUE(release.has_value());
    EXPECT_EQ(release->release().plan_id(), old_plan);
    workers_[i]->ReportPart(parts_[i], v1::PART_STATE_RELEASED);
  }
  TakeParts();
  EXPECT_EQ(side_part().plan().plan_id(), job_id_ + "/2");
}

TEST_F(ServerRecoveryTest, QueuedJobsSurviveACrashInOrder) {
  const std::string first = SubmitJob(1, 1);
  const auto second = Submit(Spec(1, 1));
  ASSERT_TRUE(second.ok());
  CrashServer();
  StartServer();
  auto worker = NewWorker("w0");
  // Whether there are CUDA workers is known once workers had time to register.
  AwaitMessage(first, "waiting for workers to register");
  Advance(absl::Seconds(4));
  const auto parts = worker->AwaitParts(2);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].plan().job_id(), first);
  EXPECT_EQ(GetJob(second->id()).state(), v1::JOB_STATE_QUEUED);
}

TEST_F(ServerRecoveryTest, ASilentWorkerIsLostWhenItsLeaseIsOver) {
  Run();
  // The others go on reporting.
  for (int i = 0; i < 12; ++i) {
    Advance(absl::Seconds(1));
    workers_[0]->ReportHeartbeat();
    workers_[2]->ReportHeartbeat();
  }
  AwaitMessage(job_id_, "was lost: silent for 10s");
}

TEST_F(ServerRecoveryTest, TheLostPeerIsNamedEvenIfAnotherPartFailsFirst) {
  Run();
  workers_[1]->Disconnect().IgnoreError();
  AwaitWorker("w1", v1::WORKER_STATE_LOST);
  side()->ReportState(side_part(), 2, v1::JOB_STATE_FAILED, "connection to rank 1 closed by peer");
  AwaitEvent(job_id_, [](const v1::JobEvent& event) {
    const std::string& message = event.state().message();
    return event.state().to() == v1::JOB_STATE_QUEUED &&
           absl::StrContains(message, "worker w1 (pid 123, host testhost), hosting stage 1, was lost") &&
           absl::StrContains(message, "connection to rank 1 closed by peer");
  });
}

TEST_F(ServerRecoveryTest, AFailureWithoutALostPeerIsReportedAsItIs) {
  Run();
  side()->ReportState(side_part(), 2, v1::JOB_STATE_FAILED, "loss is not a number at step 7");
  // Acknowledged reports tell that it has arrived; this one is acknowledged when it is decided.
  while (GetJob(job_id_).state() != v1::JOB_STATE_FAILED) Advance(absl::Milliseconds(500));
  EXPECT_THAT(GetJob(job_id_).status_message(), HasSubstr("loss is not a number at step 7"));
  Release();
}

TEST_F(ServerRecoveryTest, APartThatCannotLoadFailsTheJobAtOnce) {
  Place();
  workers_[0]->ReportPart(parts_[0], v1::PART_STATE_FAILED, absl::StatusCode::kNotFound, "no such file: model");
  AwaitState(job_id_, v1::JOB_STATE_FAILED);
  EXPECT_EQ(GetJob(job_id_).status_message(), "stage 0 on worker w0 (pid 123, host testhost): no such file: model");
  for (const int i : {1, 2}) {
    ASSERT_TRUE(workers_[i]->Await(v1::WorkerCommand::kRelease).has_value());
    workers_[i]->ReportPart(parts_[i], v1::PART_STATE_RELEASED);
  }
  for (const char* id : {"w0", "w1", "w2"}) AwaitWorker(id, v1::WORKER_STATE_IDLE);
}

TEST_F(ServerRecoveryTest, ABrokenSessionThatIsResumedInTimeKeepsTheJob) {
  Run();
  side()->Disconnect().IgnoreError();
  AwaitWorker("w2", v1::WORKER_STATE_LOST);
  Advance(absl::Seconds(3));
  workers_[2] = NewWorker("w2", {FakeWorker::PartOf(side_part())});
  AwaitWorker("w2", v1::WORKER_STATE_BUSY);
  Advance(absl::Seconds(4));
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_RUNNING);
  side()->ReportState(side_part(), 2, v1::JOB_STATE_SUCCEEDED);
  AwaitState(job_id_, v1::JOB_STATE_SUCCEEDED);
}

TEST_F(ServerRecoveryTest, AnotherProcessUnderTheSameIdDoesNotInheritTheJob) {
  Run();
  side()->Disconnect().IgnoreError();
  AwaitWorker("w2", v1::WORKER_STATE_LOST);
  workers_[2] = NewWorker("w2", {}, "second");
  AwaitEvent(job_id_, [](const v1::JobEvent& event) {
    return event.state().to() == v1::JOB_STATE_QUEUED && event.state().from() == v1::JOB_STATE_RUNNING &&
           absl::StrContains(event.state().message(), "its process ended");
  });
  AwaitWorker("w2", v1::WORKER_STATE_IDLE);
}

TEST_F(ServerRecoveryTest, ACancellationSurvivesACrash) {
  Run();
  QST_ASSERT_OK(Cancel(job_id_));
  CrashServer();
  StartServer();
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_CANCELLED);
  ReturnWorkers(3);
  Release();
}

}  // namespace
}  // namespace qst
