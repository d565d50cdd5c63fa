// Models, data sets, generation and health through the whole coordinator.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/grpc_status.h"
#include "proto/support/status_matchers.h"
#include "server/testing/server_fixture.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

class ServerDataTest : public ServerFixture {
 protected:
  absl::StatusOr<v1::Model> Import(const std::string& name, bool replace = false,
                                   const std::string& source = "/models/source.gguf") {
    v1::ImportModelRequest request;
    request.set_name(name);
    request.set_source_path(source);
    request.set_replace(replace);
    v1::ImportModelResponse response;
    const absl::Status status = FromGrpcStatus(api()->ImportModel(Context().get(), request, &response));
    if (!status.ok()) return status;
    return response.model();
  }
  v1::Model GetModel(const std::string& name) {
    v1::GetModelRequest request;
    request.set_name(name);
    v1::GetModelResponse response;
    EXPECT_TRUE(api()->GetModel(Context().get(), request, &response).ok());
    return response.model();
  }
  absl::Status DeleteModel(const std::string& name) {
    v1::DeleteModelRequest request;
    request.set_name(name);
    v1::DeleteModelResponse response;
    return FromGrpcStatus(api()->DeleteModel(Context().get(), request, &response));
  }
  absl::Status DeleteDataset(const std::string& name) {
    v1::DeleteDatasetRequest request;
    request.set_dataset(name);
    v1::DeleteDatasetResponse response;
    return FromGrpcStatus(api()->DeleteDataset(Context().get(), request, &response));
  }
  std::vector<std::string> DatasetNames() {
    v1::ListDatasetsResponse response;
    EXPECT_TRUE(api()->ListDatasets(Context().get(), {}, &response).ok());
    std::vector<std::string> names;
    for (const v1::Dataset& dataset : response.datasets()) names.push_back(dataset.name());
    return names;
  }
  static v1::UploadDatasetHeader Header(const std::string& name, const std::string& file_name = "data.jsonl",
                                        const std::string& sha256 = "") {
    v1::UploadDatasetHeader header;
    header.set_name(name);
    header.set_file_name(file_name);
    header.set_sha256(sha256);
    return header;
  }
  std::string FileOf(const std::string& model) {
    std::ifstream file(store() + "/models/" + model + "/model.safetensors");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // What imports and uploads leave behind besides whole models and data sets.
  std::vector<std::string> HiddenEntries(const std::string& folder) {
    std::vector<std::string> entries;
    for (const auto& entry : std::filesystem::directory_iterator(store() + "/" + folder)) {
      if (entry.path().filename().string()[0] == '.') entries.push_back(entry.path().string());
    }
    return entries;
  }
};

// sha256 of "abc", from the standard.
constexpr char kSha256OfAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST_F(ServerDataTest, AnImportWaitsForAWorkerReportsProgressAndEndsReady) {
  QST_ASSERT_OK(Import("smol"));
  EXPECT_EQ(GetModel("smol").status_message(), "waiting for 1 idle worker, 0 registered");
  auto worker = NewWorker("w0");
  const auto command = worker->Await(v1::WorkerCommand::kImport);
  ASSERT_TRUE(command.has_value());
  EXPECT_EQ(command->import().source_path(), "/models/source.gguf");
  // What the request leaves open, the worker fills in: by what the model comes with, or the defaults.
  EXPECT_EQ(command->import().quantization().type(), v1::QUANTIZATION_TYPE_UNSPECIFIED);
  AwaitWorker("w0", v1::WORKER_STATE_BUSY);

  v1::WatchModelRequest request;
  request.set_name("smol");
  const auto context = Context();
  const auto reader = api()->WatchModel(context.get(), request);
  v1::Model progress;
  progress.set_name("smol");
  progress.set_state(v1::MODEL_STATE_IMPORTING);
  progress.set_bytes_done(10);
  progress.set_bytes_total(20);
  worker->ReportModel(progress);
  v1::WatchModelResponse response;
  while (response.model().bytes_done() != 10) ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.model().state(), v1::MODEL_STATE_IMPORTING);
  CompleteImport(worker.get(), command->import());
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(response.model().state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(response.model().num_layers(), 6u);
  EXPECT_EQ(response.model().quantization().type(), v1::QUANTIZATION_TYPE_NF4);
  EXPECT_EQ(response.model().quantization().block_size(), 64u);
  EXPECT_TRUE(response.model().quantization().double_quant());
  EXPECT_EQ(FileOf("smol"), "/models/source.gguf");
  // Layers are for those who ask for one model.
  EXPECT_EQ(response.model().layers_size(), 6);
  EXPECT_EQ(GetModel("smol").layers_size(), 6);
  v1::ListModelsResponse list;
  ASSERT_TRUE(api()->ListModels(Context().get(), v1::ListModelsRequest(), &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  EXPECT_EQ(list.models(0).layers_size(), 0);
  EXPECT_EQ(list.models(0).num_layers(), 6u);
  AwaitWorker("w0", v1::WORKER_STATE_IDLE);
}

TEST_F(ServerDataTest, AnExistingModelIsReplacedOnlyOnRequestAndOnlyWhenTheNewOneIsWhole) {
  MakeModel("m");
  EXPECT_THAT(Import("m"), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("model 'm' exists")));
  auto worker = NewWorker("w0");
  QST_ASSERT_OK(Import("m", /*replace=*/true, "/models/bad.gguf"));
  ASSERT_TRUE(worker->Await(v1::WorkerCommand::kImport).has_value());
  v1::Model failed;
  failed.set_name("m");
  failed.set_state(v1::MODEL_STATE_FAILED);
  failed.set_status_message("header is cut off at byte 100");
  worker->ReportModel(failed);
  const v1::Model outcome = AwaitModel("m");
  EXPECT_EQ(outcome.state(), v1::MODEL_STATE_FAILED);
  EXPECT_EQ(outcome.status_message(), "header is cut off at byte 100");
  EXPECT_EQ(GetModel("m").state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(FileOf("m"), "/models/m.gguf");

  QST_ASSERT_OK(Import("m", /*replace=*/true, "/models/good.gguf"));
  const auto command = worker->Await(v1::WorkerCommand::kImport);
  ASSERT_TRUE(command.has_value());
  CompleteImport(worker.get(), command->import());
  EXPECT_EQ(AwaitModel("m").state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(FileOf("m"), "/models/good.gguf");
  EXPECT_THAT(HiddenEntries("models"), testing::IsEmpty());
}

TEST_F(ServerDataTest, AnImportWhoseWorkerIsLostFailsAndSaysWhy) {
  QST_ASSERT_OK(Import("m"));
  auto worker = NewWorker("w0");
  ASSERT_TRUE(worker->Await(v1::WorkerCommand::kImport).has_value());
  worker.reset();
  AwaitWorker("w0", v1::WORKER_STATE_LOST);
  Advance(absl::Seconds(6));
  const v1::Model model = AwaitModel("m");
  EXPECT_EQ(model.state(), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(model.status_message(), HasSubstr("worker w0 (pid 123, host testhost), which imported it, was lost"));
  // The name is free for another try.
  QST_EXPECT_OK(Import("m"));
}

TEST_F(ServerDataTest, AnImportGoesOnAfterACrashIfItsWorkerDoes) {
  QST_ASSERT_OK(Import("m"));
  auto worker = NewWorker("w0");
  const auto command = worker->Await(v1::WorkerCommand::kImport);
  ASSERT_TRUE(command.has_value());
  CrashServer();
  StartServer();
  worker = NewWorker("w0");
  AwaitWorker("w0", v1::WORKER_STATE_BUSY);
  CompleteImport(worker.get(), command->import());
  EXPECT_EQ(AwaitModel("m").state(), v1::MODEL_STATE_READY);
}

TEST_F(ServerDataTest, AnImportFailsAfterACrashIfItsWorkerIsGone) {
  QST_ASSERT_OK(Import("m"));
  auto worker = NewWorker("w0");
  ASSERT_TRUE(worker->Await(v1::WorkerCommand::kImport).has_value());
  CrashServer();
  StartServer();
  Advance(absl::Seconds(21));
  EXPECT_EQ(AwaitModel("m").state(), v1::MODEL_STATE_FAILED);
}

TEST_F(ServerDataTest, AModelThatAJobNeedsIsNeitherRemovedNorReplaced) {
  const std::string job = SubmitJob(1, 1);
  EXPECT_THAT(DeleteModel("m"), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("model 'm' is used")));
  EXPECT_THAT(Import("m", true), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("model 'm' is used")));
  EXPECT_THAT(DeleteDataset("d"), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("data set 'd' is used")));
  QST_ASSERT_OK(Cancel(job));
  QST_EXPECT_OK(DeleteModel("m"));
  QST_EXPECT_OK(DeleteDataset("d"));
  EXPECT_THAT(DeleteModel("m"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_FALSE(std::filesystem::exists(store() + "/models/m"));
}

TEST_F(ServerDataTest, AnImportUnderWayIsStoppedByRemovingTheModel) {
  QST_ASSERT_OK(Import("m"));
  auto worker = NewWorker("w0");
  ASSERT_TRUE(worker->Await(v1::WorkerCommand::kImport).has_value());
  QST_ASSERT_OK(DeleteModel("m"));
  const auto cancel = worker->Await(v1::WorkerCommand::kCancelImport);
  ASSERT_TRUE(cancel.has_value());
  v1::Model stopped;
  stopped.set_name("m");
  stopped.set_state(v1::MODEL_STATE_FAILED);
  worker->ReportModel(stopped);
  AwaitWorker("w0", v1::WORKER_STATE_IDLE);
}

TEST_F(ServerDataTest, ImportsWithBadRequestsAreRefused) {
  EXPECT_THAT(Import("../etc"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name: ")));
  EXPECT_THAT(Import(".."), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name: ")));
  EXPECT_THAT(Import("m", false, "relative.gguf"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("absolute")));
  v1::JobSpec spec = Spec(1, 1);
  QST_ASSERT_OK(Import("m"));
  MakeDataset("d");
  EXPECT_THAT(Submit(spec), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("still being imported")));
}

TEST_F(ServerDataTest, AnUploadIsStoredOnceUnderItsHash) {
  const auto first = Upload(Header("letters"), {"a", "bc"});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->dataset().id(), kSha256OfAbc);
  EXPECT_EQ(first->dataset().size_bytes(), 3u);
  EXPECT_FALSE(first->already_stored());
  const std::string path = store() + "/datasets/" + kSha256OfAbc + "/data.jsonl";
  EXPECT_EQ(std::filesystem::file_size(path), 3u);
  const auto again = Upload(Header("letters", "data.jsonl", kSha256OfAbc), {"abc"});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->already_stored());
  // The same content may have several names, and lives until the last one goes.
  QST_ASSERT_OK(Upload(Header("alphabet"), {"abc"}));
  EXPECT_THAT(DatasetNames(), testing::UnorderedElementsAre("letters", "alphabet"));
  QST_ASSERT_OK(DeleteDataset("letters"));
  EXPECT_TRUE(std::filesystem::exists(path));
  QST_ASSERT_OK(DeleteDataset(kSha256OfAbc));
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_THAT(DatasetNames(), testing::IsEmpty());
}

TEST_F(ServerDataTest, AContentUnderAnotherFileNameIsNotStoredTwice) {
  QST_ASSERT_OK(Upload(Header("a", "a.txt"), {"abc"}));
  const auto again = Upload(Header("b", "b.csv"), {"abc"});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->already_stored());
  EXPECT_EQ(again->dataset().file_name(), "b.csv") << "the newest name tells the format";
  const std::string folder = store() + "/datasets/" + kSha256OfAbc;
  EXPECT_TRUE(std::filesystem::equivalent(folder + "/a.txt", folder + "/b.csv"));
  EXPECT_THAT(HiddenEntries("datasets"), testing::IsEmpty());
  QST_ASSERT_OK(Upload(Header("", "a.txt"), {"abc"}));
  EXPECT_EQ(std::filesystem::file_size(folder + "/a.txt"), 3u);
}

TEST_F(ServerDataTest, UploadsThatAreNotWhatTheySayAreRefusedAndLeaveNothing) {
  EXPECT_THAT(Upload(Header("x", "x.csv", std::string(64, '0')), {"abc"}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr(kSha256OfAbc)));
  EXPECT_THAT(Upload(Header("x", "x.csv", "zz"), {"abc"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sha256: must be 64 hex digits")));
  EXPECT_THAT(Upload(Header("x"), {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is empty")));
  EXPECT_THAT(Upload(Header("a/b"), {"abc"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name: ")));
  EXPECT_THAT(Upload(Header("x"), {std::string((1 << 20) + 1, 'x')}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 1048576 bytes")));
  // The end of the server waits for the last call to be over.
  CrashServer();
  EXPECT_TRUE(std::filesystem::is_empty(store() + "/datasets"));
}

TEST_F(ServerDataTest, ATakenNameIsNotGivenToAnotherContent) {
  QST_ASSERT_OK(Upload(Header("x"), {"abc"}));
  EXPECT_THAT(Upload(Header("x"), {"def"}),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("`qst dataset rm x`")));
  EXPECT_THAT(DatasetNames(), testing::ElementsAre("x"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(store() + "/datasets"), {}), 1);
}

TEST_F(ServerDataTest, AFileNameCannotLeaveItsFolder) {
  const auto uploaded = Upload(Header("x", "../../../tmp/evil name.csv"), {"abc"});
  ASSERT_TRUE(uploaded.ok()) << uploaded.status();
  EXPECT_EQ(uploaded->dataset().file_name(), "evil_name.csv");
  EXPECT_TRUE(std::filesystem::exists(store() + "/datasets/" + kSha256OfAbc + "/evil_name.csv"));
}

TEST_F(ServerDataTest, ACancelledUploadLeavesNothing) {
  const auto context = Context();
  v1::UploadDatasetResponse response;
  const auto writer = api()->UploadDataset(context.get(), &response);
  v1::UploadDatasetRequest request;
  *request.mutable_header() = Header("half");
  writer->Write(request);
  request.set_data("abc");
  writer->Write(request);
  context->TryCancel();
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // The end of the server waits for the call to be over.
  CrashServer();
  EXPECT_THAT(HiddenEntries("datasets"), testing::IsEmpty());
  StartServer();
  EXPECT_THAT(DatasetNames(), testing::IsEmpty());
}

TEST_F(ServerDataTest, GenerationStreamsTextFromItsOwnPlacement) {
  MakeModel("m");
  auto worker = NewWorker("w0");
  v1::GenerateRequest request;
  request.set_model("m");
  request.set_prompt("Once");
  request.mutable_resources()->set_workers(1);
  const auto context = Context();
  const auto reader = api()->Generate(context.get(), request);
  const auto parts = worker->AwaitParts(2);
  ASSERT_EQ(parts.size(), 2u);
  const v1::HostPart& side = parts[0].is_side() ? parts[0] : parts[1];
  EXPECT_EQ(side.generate().request().max_new_tokens(), 128u);
  EXPECT_EQ(side.plan().wire_dtype(), v1::WIRE_DTYPE_F32);
  EXPECT_GE(side.plan().max_sequence_tokens(), 4u + 128u);
  v1::WorkerReport report;
  report.mutable_generate()->set_job_id(side.plan().job_id());
  report.mutable_generate()->mutable_response()->set_text(" upon");
  worker->Report(report);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.text(), " upon");
  report.mutable_generate()->mutable_response()->set_finish_reason("stop");
  worker->Report(report);
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_TRUE(worker->Await(v1::WorkerCommand::kRelease).has_value());
  for (const v1::HostPart& part : parts) worker->ReportPart(part, v1::PART_STATE_RELEASED);
  AwaitWorker("w0", v1::WORKER_STATE_IDLE);
}

TEST_F(ServerDataTest, AFinishedJobsTemplateAndTypeAreThoseOfItsTraining) {
  MakeModel("m");
  MakeDataset("d");
  auto worker = NewWorker("w0");
  v1::JobSpec spec = Spec(1, 1);
  spec.mutable_data()->set_template_("custom");
  spec.mutable_data()->mutable_custom_template()->set_user_prefix("Q: ");
  const auto job = Submit(spec);
  QST_ASSERT_OK(job.status());
  const auto trained = worker->AwaitParts(2);
  ASSERT_EQ(trained.size(), 2u);
  for (const v1::HostPart& part : trained) worker->ReportPart(part, v1::PART_STATE_READY);
  const v1::HostPart& side = trained[0].is_side() ? trained[0] : trained[1];
  worker->ReportState(side, 1, v1::JOB_STATE_RUNNING);
  worker->ReportState(side, 2, v1::JOB_STATE_SUCCEEDED, "done");
  AwaitState(job->id(), v1::JOB_STATE_SUCCEEDED);
  for (const v1::HostPart& part : trained) worker->ReportPart(part, v1::PART_STATE_RELEASED);
  AwaitWorker("w0", v1::WORKER_STATE_IDLE);

  v1::GenerateRequest request;
  request.set_job_id(job->id());
  request.set_prompt("Why?");
  request.mutable_resources()->set_workers(1);
  for (const char* name : {"auto", "custom", "alpaca", ""}) {
    SCOPED_TRACE(name);
    request.set_template_(name);
    const auto context = Context();
    const auto reader = api()->Generate(context.get(), request);
    const auto parts = worker->AwaitParts(2);
    ASSERT_EQ(parts.size(), 2u);
    const v1::HostPart& generating = parts[0].is_side() ? parts[0] : parts[1];
    const bool is_jobs_own = std::string(name) == "auto" || std::string(name) == "custom";
    const v1::DataConfig& data = generating.generate().data();
    EXPECT_EQ(data.template_(), is_jobs_own ? "custom" : name);
    EXPECT_EQ(data.custom_template().user_prefix(), is_jobs_own ? "Q: " : "");
    EXPECT_EQ(generating.plan().compute_dtype(), v1::COMPUTE_DTYPE_F32);
    EXPECT_FALSE(generating.plan().side_tf32());
    context->TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    for (const v1::HostPart& part : parts) worker->ReportPart(part, v1::PART_STATE_RELEASED);
    AwaitWorker("w0", v1::WORKER_STATE_IDLE);
  }
}

TEST_F(ServerDataTest, CancellingGenerationReleasesItsWorkers) {
  MakeModel("m");
  auto worker = NewWorker("w0");
  v1::GenerateRequest request;
  request.set_model("m");
  request.mutable_resources()->set_workers(1);
  const auto context = Context();
  const auto reader = api()->Generate(context.get(), request);
  ASSERT_EQ(worker->AwaitParts(2).size(), 2u);
  context->TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(worker->Await(v1::WorkerCommand::kRelease).has_value());
}

TEST_F(ServerDataTest, GenerationWithoutWorkersSaysWhatItWaitedFor) {
  MakeModel("m");
  v1::GenerateRequest request;
  request.set_model("m");
  const auto context = Context();
  const auto reader = api()->Generate(context.get(), request);
  grpc::Status status;
  std::thread client([&] {
    v1::GenerateResponse response;
    EXPECT_FALSE(reader->Read(&response));
    status = reader->Finish();
  });
  // Headers come with the first message or the end only, so the start cannot be awaited: the deadline is 20 s away and
  // the clock moves by more, again and again.
  std::atomic<bool> is_over{false};
  std::thread time([&] {
    while (!is_over) Advance(absl::Seconds(25));
  });
  client.join();
  is_over = true;
  time.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("waiting for 1 idle worker, 0 registered"));
}

TEST_F(ServerDataTest, GenerationWithBadRequestsIsRefused) {
  const auto status_of = [&](const v1::GenerateRequest& request) {
    const auto context = Context();
    const auto reader = api()->Generate(context.get(), request);
    v1::GenerateResponse response;
    EXPECT_FALSE(reader->Read(&response));
    return FromGrpcStatus(reader->Finish());
  };
  v1::GenerateRequest request;
  EXPECT_THAT(status_of(request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model: is required")));
  request.set_model("nope");
  EXPECT_THAT(status_of(request), StatusIs(absl::StatusCode::kNotFound, HasSubstr("`qst model list`")));
  request.set_temperature(-1);
  EXPECT_THAT(status_of(request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("temperature: ")));
  request.set_temperature(0);
  request.set_job_id(SubmitJob(1, 1));
  EXPECT_THAT(status_of(request), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is QUEUED")));
}

TEST_F(ServerDataTest, StoppingEndsWatchersAndSessionsAndRefusesNewWork) {
  const std::string job = SubmitJob(2, 0);
  auto worker = NewWorker("w0");
  v1::WatchJobRequest request;
  request.set_job_id(job);
  const auto context = Context();
  const auto reader = api()->WatchJob(context.get(), request);
  v1::WatchJobResponse response;
  ASSERT_TRUE(reader->Read(&response));
  // Long before the patience is over: nothing is left that would have to be cut.
  const absl::Time start = absl::Now();
  server_->Stop(absl::Seconds(300));
  EXPECT_LT(absl::Now() - start, absl::Seconds(60));
  while (reader->Read(&response)) {
  }
  EXPECT_THAT(FromGrpcStatus(reader->Finish()), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  EXPECT_THAT(worker->AwaitEnd(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  StartServer();
  EXPECT_EQ(GetJob(job).state(), v1::JOB_STATE_QUEUED);
}

TEST_F(ServerDataTest, ASecondCoordinatorOnTheSameStoreOrPortIsRefused) {
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.store = store();
  EXPECT_THAT(Server::Start(options), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("coordinator.db")));
  options.store = store() + "/other";
  options.listen = address();
  EXPECT_THAT(Server::Start(options), StatusIs(absl::StatusCode::kUnavailable, HasSubstr(address())));
  options.listen = "nowhere";
  EXPECT_THAT(Server::Start(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("host:port")));
}

}  // namespace
}  // namespace qst
