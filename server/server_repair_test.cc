// Stages that are lost while their job runs: real gRPC, a real store, workers that do as told.
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "server/testing/placed_job_fixture.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

class ServerRepairTest : public PlacedJobFixture {
 protected:
  // The process of a worker ends.
  void Lose(int worker) {
    workers_[worker]->Disconnect().IgnoreError();
    AwaitWorker(workers_[worker]->id(), v1::WORKER_STATE_LOST);
  }
  // The side network tells that its stages are gone, as the plan that it is attached to.
  void ReportDetached() {
    side()->ReportPart(side_part(), v1::PART_STATE_DETACHED, absl::StatusCode::kUnavailable, "stage 1 is gone");
  }
  void ReportStep(std::uint64_t sequence, std::uint64_t step) {
    v1::JobReport progress;
    progress.mutable_progress()->set_step(step);
    progress.mutable_progress()->set_total_steps(100);
    side()->ReportJob(side_part(), sequence, progress);
    // What was reported before is acknowledged before.
    std::uint64_t acknowledged = 0;
    while (acknowledged < sequence) {
      const auto ack = side()->Await(v1::WorkerCommand::kJobAck);
      ASSERT_TRUE(ack.has_value());
      EXPECT_EQ(ack->job_ack().plan_id(), plan_id(0));
      acknowledged = ack->job_ack().report_sequence();
    }
  }
  // Takes the side network's command to attach; parts_[2] becomes its part of the new plan.
  v1::AttachStages TakeAttach() {
    const auto command = side()->Await(v1::WorkerCommand::kAttach);
    EXPECT_TRUE(command.has_value());
    if (!command.has_value()) return v1::AttachStages();
    *parts_[2].mutable_plan() = command->attach().plan();
    return command->attach();
  }
  std::string plan_id(int revision) const {
    return absl::StrCat(job_id_, "/1", revision == 0 ? "" : absl::StrCat(".", revision));
  }
};

TEST_F(ServerRepairTest, ALostStageGoesToAnIdleWorkerAndTheJobGoesOn) {
  Run();
  workers_.push_back(NewWorker("w3"));
  ReportStep(2, 7);
  Lose(1);
  ReportDetached();

  const v1::AttachStages attach = TakeAttach();
  EXPECT_EQ(attach.plan_id(), plan_id(0));
  EXPECT_EQ(attach.plan().plan_id(), plan_id(1));
  ASSERT_EQ(attach.plan().stages_size(), 2);
  EXPECT_EQ(attach.plan().stages(0).worker_id(), "w0");
  EXPECT_EQ(attach.plan().stages(1).worker_id(), "w3");
  EXPECT_EQ(attach.plan().stages(1).first_layer(), 3u);
  EXPECT_EQ(attach.plan().side_worker_id(), "w2");
  // The stage that is still there is hosted anew, among its new peers.
  EXPECT_EQ(workers_[0]->Await(v1::WorkerCommand::kRelease)->release().plan_id(), plan_id(0));
  workers_[0]->ReportPart(parts_[0], v1::PART_STATE_RELEASED);
  parts_[0] = workers_[0]->AwaitParts(1).at(0);
  EXPECT_EQ(parts_[0].plan().plan_id(), plan_id(1));
  parts_[1] = workers_[3]->AwaitParts(1).at(0);
  EXPECT_EQ(parts_[1].stage(), 1u);
  v1::Job job = GetJob(job_id_);
  EXPECT_EQ(job.state(), v1::JOB_STATE_RUNNING);
  EXPECT_EQ(job.placement().stages(1).worker_id(), "w3");

  workers_[0]->ReportPart(parts_[0], v1::PART_STATE_READY);
  workers_[3]->ReportPart(parts_[1], v1::PART_STATE_READY);
  side()->ReportPart(side_part(), v1::PART_STATE_READY);
  AwaitMessage(job_id_, "its stages are back after");
  // The side network's reports go on counting.
  ReportStep(3, 8);
  side()->ReportState(side_part(), 4, v1::JOB_STATE_SUCCEEDED);
  AwaitState(job_id_, v1::JOB_STATE_SUCCEEDED);
  for (const int i : {0, 2, 3}) {
    EXPECT_EQ(workers_[i]->Await(v1::WorkerCommand::kRelease)->release().plan_id(), plan_id(1));
  }
  job = GetJob(job_id_);
  EXPECT_EQ(job.attempt(), 1u);
  EXPECT_EQ(job.placement().revision(), 1u);
  std::string messages;
  for (const v1::JobEvent& event : AllEvents(job_id_)) absl::StrAppend(&messages, event.message(), "\n");
  EXPECT_THAT(messages, HasSubstr("worker w1 (pid 123, host testhost), hosting stage 1, was lost: connection closed"));
  EXPECT_THAT(messages, HasSubstr("stage 1 goes to worker w3"));
}

TEST_F(ServerRepairTest, AWorkerThatIsMissedIsReplacedWithinFifteenSecondsThoughNobodyComplains) {
  Run();
  workers_.push_back(NewWorker("w3"));
  Lose(1);
  for (int second = 0; second < 15 && GetJob(job_id_).placement().revision() == 0; ++second) {
    Advance(absl::Seconds(1));
    for (const int i : {0, 2, 3}) workers_[i]->ReportHeartbeat();
  }
  EXPECT_EQ(TakeAttach().plan().stages(1).worker_id(), "w3");
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_RUNNING);
}

TEST_F(ServerRepairTest, WithoutAnIdleWorkerItWaitsAMomentAndThenSharesOne) {
  Run();
  Lose(1);
  ReportDetached();
  AwaitMessage(job_id_, "waiting for an idle cpu worker for stage 1");
  for (int second = 0; second < 12; ++second) {
    if (second < 9) {
      EXPECT_EQ(GetJob(job_id_).placement().revision(), 0u) << second;
    }
    Advance(absl::Seconds(1));
    for (const int i : {0, 2}) workers_[i]->ReportHeartbeat();
  }
  const v1::AttachStages attach = TakeAttach();
  EXPECT_EQ(attach.plan().stages(0).worker_id(), "w0");
  EXPECT_EQ(attach.plan().stages(1).worker_id(), "w0");
  EXPECT_EQ(workers_[0]->AwaitParts(2).size(), 2u);
}

TEST_F(ServerRepairTest, AWorkerThatComesWhileItWaitsTakesTheStage) {
  Run();
  Lose(0);
  ReportDetached();
  AwaitMessage(job_id_, "waiting for an idle cpu worker for stage 0");
  // The same id, started again.
  workers_[0] = NewWorker("w0", {}, "second");
  EXPECT_EQ(TakeAttach().plan().stages(0).worker_id(), "w0");
  EXPECT_EQ(workers_[0]->AwaitParts(1).at(0).plan().plan_id(), plan_id(1));
}

TEST_F(ServerRepairTest, ABrokenDataPlaneIsFormedAnewAmongTheSameWorkers) {
  Run();
  workers_[0]->ReportPart(parts_[0], v1::PART_STATE_FAILED, absl::StatusCode::kUnavailable, "connection reset");
  ReportDetached();
  while (GetJob(job_id_).placement().revision() == 0) Advance(absl::Milliseconds(100));
  const v1::AttachStages attach = TakeAttach();
  EXPECT_EQ(attach.plan().stages(0).worker_id(), "w0");
  EXPECT_EQ(attach.plan().stages(1).worker_id(), "w1");
  EXPECT_EQ(workers_[0]->AwaitParts(1).at(0).plan().plan_id(), plan_id(1));
  EXPECT_EQ(workers_[1]->AwaitParts(1).at(0).plan().plan_id(), plan_id(1));
}

TEST_F(ServerRepairTest, LossesWithoutAStepBetweenThemFailTheJobAtLast) {
  Run();
  ReportStep(2, 3);
  const auto lose = [&](std::uint32_t revision) {
    ReportDetached();
    while (GetJob(job_id_).placement().revision() < revision) {
      Advance(absl::Milliseconds(200));
      for (auto& worker : workers_) worker->ReportHeartbeat();
    }
    TakeAttach();
  };
  lose(1);
  lose(2);
  ReportStep(3, 4);  // and counting begins anew
  for (std::uint32_t revision = 3; revision <= 7; ++revision) lose(revision);
  ReportDetached();
  while (GetJob(job_id_).state() == v1::JOB_STATE_RUNNING) Advance(absl::Milliseconds(200));
  const v1::Job job = GetJob(job_id_);
  EXPECT_EQ(job.state(), v1::JOB_STATE_FAILED);
  EXPECT_THAT(job.status_message(), HasSubstr("given up after 6 losses"));
}

TEST_F(ServerRepairTest, AStageThatFailsByItselfFailsTheJob) {
  Run();
  workers_[1]->ReportPart(parts_[1], v1::PART_STATE_FAILED, absl::StatusCode::kResourceExhausted, "out of memory");
  AwaitState(job_id_, v1::JOB_STATE_FAILED);
  EXPECT_THAT(GetJob(job_id_).status_message(), HasSubstr("stage 1 on worker w1 (pid 123, host testhost): out of"));
}

TEST_F(ServerRepairTest, AJobThatWaitsForAStageCanBeCancelled) {
  Run();
  Lose(1);
  ReportDetached();
  AwaitMessage(job_id_, "waiting for an idle cpu worker for stage 1");
  QST_ASSERT_OK(Cancel(job_id_));
  EXPECT_EQ(side()->Await(v1::WorkerCommand::kCancel)->cancel().plan_id(), plan_id(0));
  side()->ReportState(side_part(), 2, v1::JOB_STATE_CANCELLED);
  AwaitState(job_id_, v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(side()->Await(v1::WorkerCommand::kRelease)->release().plan_id(), plan_id(0));
}

TEST_F(ServerRepairTest, ALostSideNetworkQueuesTheJobAgain) {
  Run();
  Lose(2);
  for (int second = 0; second < 15 && GetJob(job_id_).state() == v1::JOB_STATE_RUNNING; ++second) {
    Advance(absl::Seconds(1));
    for (const int i : {0, 1}) workers_[i]->ReportHeartbeat();
  }
  AwaitMessage(job_id_, "waiting for 3 idle cpu workers, ");
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_QUEUED);
  for (const int i : {0, 1}) {
    ASSERT_TRUE(workers_[i]->Await(v1::WorkerCommand::kRelease).has_value());
    workers_[i]->ReportPart(parts_[i], v1::PART_STATE_RELEASED);
  }
  workers_[2] = NewWorker("w2", {}, "second");
  TakeParts();
  EXPECT_EQ(side_part().plan().plan_id(), job_id_ + "/2");
}

TEST_F(ServerRepairTest, AWorkerThatIsLostBeforeTheJobRunsQueuesItAgain) {
  Place();
  Lose(1);
  workers_[0]->ReportPart(parts_[0], v1::PART_STATE_FAILED, absl::StatusCode::kUnavailable, "stage 1 did not come");
  AwaitMessage(job_id_, "waiting for 3 idle cpu workers, ");
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_QUEUED);
}

TEST_F(ServerRepairTest, AnAttachCommandThatWasLostWithItsSessionIsSentAgain) {
  Run();
  workers_.push_back(NewWorker("w3"));
  Lose(1);
  ReportDetached();
  const v1::HostedPart before = FakeWorker::PartOf(side_part());
  TakeAttach();
  side()->Disconnect().IgnoreError();
  AwaitWorker("w2", v1::WORKER_STATE_LOST);
  // It has not heard of the new plan.
  workers_[2] = NewWorker("w2", {before});
  const v1::AttachStages again = TakeAttach();
  EXPECT_EQ(again.plan_id(), plan_id(0));
  EXPECT_EQ(again.plan().plan_id(), plan_id(1));
  side()->ReportPart(side_part(), v1::PART_STATE_READY);
  AwaitMessage(job_id_, "its stages are back after");
}

TEST_F(ServerRepairTest, ARepairedJobSurvivesACrashOfTheCoordinator) {
  Run();
  workers_.push_back(NewWorker("w3"));
  Lose(1);
  ReportDetached();
  TakeAttach();
  parts_[0] = workers_[0]->AwaitParts(1).at(0);
  parts_[1] = workers_[3]->AwaitParts(1).at(0);
  side()->ReportPart(side_part(), v1::PART_STATE_READY);
  AwaitMessage(job_id_, "its stages are back after");
  CrashServer();
  StartServer();
  workers_.clear();
  workers_.push_back(NewWorker("w0", {FakeWorker::PartOf(parts_[0])}));
  workers_.push_back(NewWorker("w3", {FakeWorker::PartOf(parts_[1])}));
  workers_.push_back(NewWorker("w2", {FakeWorker::PartOf(parts_[2])}));
  AwaitMessage(job_id_, "all workers of the job came back");
  ReportStep(2, 9);
  EXPECT_EQ(GetJob(job_id_).attempt(), 1u);
}

TEST_F(ServerRepairTest, AStageThatIsLostWhileTheCoordinatorIsAwayIsPlacedAgain) {
  Run();
  CrashServer();
  StartServer();
  workers_.clear();
  workers_.push_back(NewWorker("w0", {FakeWorker::PartOf(parts_[0])}));
  // Started again, without its stage.
  workers_.push_back(NewWorker("w1", {}, "second"));
  workers_.push_back(NewWorker("w2", {FakeWorker::PartOf(parts_[2])}));
  EXPECT_EQ(TakeAttach().plan().stages(1).worker_id(), "w1");
  EXPECT_EQ(workers_[1]->AwaitParts(1).at(0).plan().plan_id(), plan_id(1));
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_RUNNING);
}

}  // namespace
}  // namespace qst
