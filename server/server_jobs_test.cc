// The life of jobs through the whole coordinator: real gRPC, a real store, workers that do as told.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "server/testing/placed_job_fixture.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

class ServerJobsTest : public PlacedJobFixture {};

TEST_F(ServerJobsTest, AJobGoesFromSubmissionToItsResults) {
  job_id_ = SubmitJob(2, 0);
  AwaitMessage(job_id_, "waiting for 3 idle workers, 0 registered");
  StartWorkers();
  TakeParts();

  // Each worker is told its part and where everyone else is.
  EXPECT_FALSE(parts_[0].is_side());
  EXPECT_EQ(parts_[1].stage(), 1u);
  EXPECT_TRUE(side_part().is_side());
  const v1::JobPlan& plan = side_part().plan();
  EXPECT_EQ(plan.plan_id(), job_id_ + "/1");
  EXPECT_EQ(plan.side_worker_id(), "w2");
  ASSERT_EQ(plan.stages_size(), 2);
  EXPECT_EQ(plan.stages(1).first_layer(), 3u);
  EXPECT_EQ(plan.model_path(), store() + "/models/m");
  EXPECT_EQ(plan.max_sequence_tokens(), 512u);
  ASSERT_TRUE(side_part().has_train());
  EXPECT_TRUE(std::filesystem::exists(side_part().train().train_path()));
  EXPECT_EQ(side_part().train().job_path(), store() + "/jobs/" + job_id_);
  EXPECT_EQ(side_part().train().spec().train().batch_size(), 16u);

  // Peers find each other.
  v1::SetKeyRequest set;
  set.set_plan_id(plan.plan_id());
  set.set_key("0/address");
  set.set_value("tcp://1");
  v1::SetKeyResponse set_response;
  ASSERT_TRUE(workers_[0]->stub()->SetKey(Context().get(), set, &set_response).ok());
  v1::GetKeyRequest get;
  get.set_plan_id(plan.plan_id());
  get.set_key("0/address");
  v1::GetKeyResponse get_response;
  ASSERT_TRUE(side()->stub()->GetKey(Context().get(), get, &get_response).ok());
  EXPECT_EQ(get_response.value(), "tcp://1");

  for (int i = 0; i < 3; ++i) workers_[i]->ReportPart(parts_[i], v1::PART_STATE_READY);
  side()->ReportState(side_part(), 1, v1::JOB_STATE_EVALUATING);
  side()->ReportMetrics(side_part(), 2, R"({"step":0,"eval":{"loss":4.5}})");
  side()->ReportState(side_part(), 3, v1::JOB_STATE_RUNNING);
  v1::JobReport progress;
  progress.mutable_progress()->set_step(10);
  progress.mutable_progress()->set_total_steps(10);
  progress.mutable_progress()->set_loss(1.25);
  side()->ReportJob(side_part(), 4, progress);
  std::filesystem::create_directories(store() + "/jobs/" + job_id_ + "/results");
  std::ofstream(store() + "/jobs/" + job_id_ + "/results/metrics.jsonl") << "{}\n";
  std::ofstream(store() + "/jobs/" + job_id_ + "/results/side_network.safetensors") << std::string(600'000, 'x');
  side()->ReportState(side_part(), 5, v1::JOB_STATE_SUCCEEDED, "done");
  AwaitState(job_id_, v1::JOB_STATE_SUCCEEDED);
  Release();

  const v1::Job job = GetJob(job_id_);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.progress().step(), 10u);
  EXPECT_EQ(job.attempt(), 1u);
  EXPECT_GT(job.started_ms(), 0);
  EXPECT_GE(job.finished_ms(), job.started_ms());

  std::vector<v1::JobState> states;
  std::uint64_t sequence = 0;
  int num_metrics = 0;
  for (const v1::JobEvent& event : AllEvents(job_id_)) {
    EXPECT_EQ(event.sequence(), ++sequence);
    if (event.has_state()) states.push_back(event.state().to());
    if (!event.metrics_json().empty()) ++num_metrics;
  }
  EXPECT_THAT(states, testing::ElementsAre(v1::JOB_STATE_QUEUED, v1::JOB_STATE_PREPARING, v1::JOB_STATE_EVALUATING,
                                           v1::JOB_STATE_RUNNING, v1::JOB_STATE_SUCCEEDED));
  EXPECT_EQ(num_metrics, 1);

  // The results come file by file.
  v1::DownloadResultsRequest download;
  download.set_job_id(job_id_);
  const auto context = Context();
  const auto reader = api()->DownloadResults(context.get(), download);
  std::map<std::string, std::string> files;
  v1::DownloadResultsResponse piece;
  while (reader->Read(&piece)) {
    EXPECT_LE(piece.data().size(), 256u * 1024);
    files[piece.path()] += piece.data();
  }
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(files["metrics.jsonl"], "{}\n");
  EXPECT_EQ(files["side_network.safetensors"], std::string(600'000, 'x'));
}

TEST_F(ServerJobsTest, AReportThatComesTwiceIsStoredOnceAndAcknowledgedTwice) {
  Run();
  ASSERT_EQ(side()->Await(v1::WorkerCommand::kJobAck)->job_ack().report_sequence(), 1u);
  side()->ReportMetrics(side_part(), 2, "{}");
  side()->ReportMetrics(side_part(), 2, "{}");
  EXPECT_EQ(side()->Await(v1::WorkerCommand::kJobAck)->job_ack().report_sequence(), 2u);
  EXPECT_EQ(side()->Await(v1::WorkerCommand::kJobAck)->job_ack().report_sequence(), 2u);
  side()->ReportState(side_part(), 3, v1::JOB_STATE_SUCCEEDED);
  AwaitState(job_id_, v1::JOB_STATE_SUCCEEDED);
  const std::vector<v1::JobEvent> events = AllEvents(job_id_);
  EXPECT_EQ(std::count_if(events.begin(), events.end(),
                          [](const v1::JobEvent& event) { return event.metrics_json() == "{}"; }),
            1);
}

TEST_F(ServerJobsTest, AQueuedJobIsCancelledAtOnce) {
  const std::string id = SubmitJob(2, 0);
  const auto job = Cancel(id);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(Cancel(id)->state(), v1::JOB_STATE_CANCELLED);
}

TEST_F(ServerJobsTest, AJobInPreparationIsCancelledByItsSideNetwork) {
  Place();
  QST_ASSERT_OK(Cancel(job_id_));
  ASSERT_TRUE(side()->Await(v1::WorkerCommand::kCancel).has_value());
  side()->ReportState(side_part(), 1, v1::JOB_STATE_CANCELLED);
  AwaitState(job_id_, v1::JOB_STATE_CANCELLED);
  Release();
}

TEST_F(ServerJobsTest, ARunningJobIsCancelledEvenIfItsSideNetworkDoesNotAnswer) {
  Run();
  QST_ASSERT_OK(Cancel(job_id_));
  ASSERT_TRUE(side()->Await(v1::WorkerCommand::kCancel).has_value());
  EXPECT_EQ(GetJob(job_id_).state(), v1::JOB_STATE_RUNNING);
  Advance(absl::Seconds(6));
  AwaitState(job_id_, v1::JOB_STATE_CANCELLED);
  Release();
}

TEST_F(ServerJobsTest, AnEvaluatingJobIsCancelledAndWhatBreaksMeanwhileDoesNotMatter) {
  Run();
  side()->ReportState(side_part(), 2, v1::JOB_STATE_EVALUATING);
  AwaitState(job_id_, v1::JOB_STATE_EVALUATING);
  QST_ASSERT_OK(Cancel(job_id_));
  side()->ReportState(side_part(), 3, v1::JOB_STATE_FAILED, "interrupted");
  AwaitState(job_id_, v1::JOB_STATE_CANCELLED);
}

TEST_F(ServerJobsTest, AJobThatIsOverCannotBeCancelled) {
  Run();
  side()->ReportState(side_part(), 2, v1::JOB_STATE_SUCCEEDED);
  AwaitState(job_id_, v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(Cancel(job_id_), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is SUCCEEDED already")));
  EXPECT_THAT(Cancel("j-00000000"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("j-00000000")));
}

TEST_F(ServerJobsTest, ARetriedSubmissionReturnsTheSameJob) {
  MakeModel("m");
  MakeDataset("d");
  const auto first = Submit(Spec(1, 1), "request-1");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(Submit(Spec(1, 1), "request-1")->id(), first->id());
  CrashServer();
  StartServer();
  EXPECT_EQ(Submit(Spec(1, 1), "request-1")->id(), first->id());
  EXPECT_NE(Submit(Spec(1, 1), "request-2")->id(), first->id());
}

TEST_F(ServerJobsTest, ALaterJobWaitsBehindTheFirstEvenIfItWouldFit) {
  const std::string first = SubmitJob(2, 0);
  const auto second = Submit(Spec(1, 1));
  ASSERT_TRUE(second.ok());
  auto worker = NewWorker("w0");
  AwaitMessage(first, "waiting for 3 idle cpu workers, 1 of 1 is idle");
  EXPECT_EQ(GetJob(second->id()).status_message(), "waiting behind job " + first);
  QST_ASSERT_OK(Cancel(first));
  EXPECT_EQ(worker->AwaitParts(1).size(), 1u);
  AwaitState(second->id(), v1::JOB_STATE_PREPARING);
}

TEST_F(ServerJobsTest, AJobThatTakesWhatIsThereWaitsUntilWorkersHadTimeToRegister) {
  const std::string id = SubmitJob(0, 0);
  // The import took longer than that: start anew.
  CrashServer();
  StartServer();
  StartWorkers();
  AwaitMessage(id, "waiting for workers to register");
  Advance(absl::Seconds(4));
  TakeParts();
  EXPECT_EQ(side_part().plan().stages_size(), 2);
}

TEST_F(ServerJobsTest, ASpecThatCannotRunIsRefusedAndNamesTheField) {
  MakeModel("m");
  MakeDataset("d");
  v1::JobSpec spec = Spec(1, 1);
  spec.mutable_train()->set_learning_rate(-1);
  EXPECT_THAT(Submit(spec),
              StatusIs(absl::StatusCode::kInvalidArgument, "train.learning_rate: must be above 0, is -1"));
  spec = Spec(7, 0);
  EXPECT_THAT(Submit(spec), StatusIs(absl::StatusCode::kInvalidArgument,
                                     "resources.stages: must be at most the model's 6 layers, is 7"));
  spec = Spec(1, 1);
  spec.set_model("nope");
  EXPECT_THAT(Submit(spec), StatusIs(absl::StatusCode::kNotFound, HasSubstr("`qst model list`")));
  spec = Spec(1, 1);
  spec.mutable_data()->set_eval("nope");
  EXPECT_THAT(Submit(spec), StatusIs(absl::StatusCode::kNotFound, HasSubstr("data.eval: no data set 'nope'; see `qst "
                                                                            "dataset list`")));
  spec = Spec(1, 1);
  spec.mutable_quantization()->set_type(v1::QUANTIZATION_TYPE_FP4);
  EXPECT_THAT(Submit(spec), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("quantization.type: must be nf4")));
}

TEST_F(ServerJobsTest, AWorkerOnAnotherStoreIsRefused) {
  FakeWorker::Options options;
  options.id = "stranger";
  options.store_path = "/somewhere/else";
  FakeWorker worker(address(), options);
  EXPECT_THAT(worker.AwaitEnd(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("/somewhere/else")));
}

TEST_F(ServerJobsTest, ASecondProcessWithTheIdOfAConnectedWorkerIsRefused) {
  auto worker = NewWorker("w0");
  FakeWorker::Options options;
  options.id = "w0";
  options.incarnation = "second";
  options.store_path = store();
  FakeWorker second(address(), options);
  EXPECT_THAT(second.AwaitEnd(), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("worker w0")));
}

TEST_F(ServerJobsTest, ResultsThatAreNotThereYetAreAFailedPrecondition) {
  const std::string id = SubmitJob(1, 1);
  v1::DownloadResultsRequest request;
  request.set_job_id(id);
  auto context = Context();
  v1::DownloadResultsResponse piece;
  auto reader = api()->DownloadResults(context.get(), request);
  EXPECT_FALSE(reader->Read(&piece));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  request.set_job_id("../../etc");
  context = Context();
  reader = api()->DownloadResults(context.get(), request);
  EXPECT_FALSE(reader->Read(&piece));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServerJobsTest, AKeyIsAwaitedAndWaitingEndsWithThePlan) {
  Place();
  v1::GetKeyRequest get;
  get.set_plan_id(side_part().plan().plan_id());
  get.set_key("late");
  grpc::Status first_status;
  v1::GetKeyResponse first_response;
  std::thread waiting([&] { first_status = side()->stub()->GetKey(Context().get(), get, &first_response); });
  v1::SetKeyRequest set;
  set.set_plan_id(get.plan_id());
  set.set_key("late");
  set.set_value("here");
  v1::SetKeyResponse set_response;
  ASSERT_TRUE(workers_[0]->stub()->SetKey(Context().get(), set, &set_response).ok());
  waiting.join();
  EXPECT_TRUE(first_status.ok()) << first_status.error_message();
  EXPECT_EQ(first_response.value(), "here");

  get.set_key("never");
  grpc::Status second_status;
  std::thread in_vain([&] {
    v1::GetKeyResponse response;
    second_status = side()->stub()->GetKey(Context().get(), get, &response);
  });
  workers_[0]->ReportPart(parts_[0], v1::PART_STATE_FAILED, absl::StatusCode::kNotFound, "gone");
  in_vain.join();
  // Whether it came before the plan was released or after.
  EXPECT_TRUE(second_status.error_code() == grpc::StatusCode::ABORTED ||
              second_status.error_code() == grpc::StatusCode::FAILED_PRECONDITION)
      << second_status.error_code();
}

}  // namespace
}  // namespace qst
