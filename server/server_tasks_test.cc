// Short tasks through the whole coordinator: who does them, what becomes of them.
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

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

// A call that waits on a thread of its own.
template <typename Response>
class Call {
 public:
  template <typename Start>
  explicit Call(Start start)
      : context_(std::make_unique<grpc::ClientContext>()), thread_([this, start] {
          context_->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
          status_ = FromGrpcStatus(start(context_.get(), &response_));
          is_over_ = true;
        }) {}
  ~Call() {
    if (thread_.joinable()) Await().IgnoreError();
  }

  absl::Status Await() {
    thread_.join();
    return status_;
  }
  bool is_over() const { return is_over_; }
  void Cancel() { context_->TryCancel(); }
  const Response& response() const { return response_; }

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  Response response_;
  absl::Status status_;
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

class ServerTasksTest : public ServerFixture {
 protected:
  std::unique_ptr<Call<v1::TokenizeResponse>> Tokenize(const std::string& text, const std::string& model = "m") {
    v1::TokenizeRequest request;
    request.set_model(model);
    request.set_text(text);
    return std::make_unique<Call<v1::TokenizeResponse>>(
        [this, request](grpc::ClientContext* context, v1::TokenizeResponse* response) {
          return api()->Tokenize(context, request, response);
        });
  }
  std::unique_ptr<Call<v1::DescribeDatasetResponse>> Describe(const v1::DescribeDatasetRequest& request) {
    return std::make_unique<Call<v1::DescribeDatasetResponse>>(
        [this, request](grpc::ClientContext* context, v1::DescribeDatasetResponse* response) {
          return api()->DescribeDataset(context, request, response);
        });
  }
  static v1::TaskCommand AwaitTask(FakeWorker* worker) {
    const auto command = worker->Await(v1::WorkerCommand::kTask);
    EXPECT_TRUE(command.has_value());
    return command.has_value() ? command->task() : v1::TaskCommand();
  }
  static void ReportTokens(FakeWorker* worker, const v1::TaskCommand& task, const std::string& decoded) {
    v1::WorkerReport report;
    report.mutable_task()->set_task_id(task.task_id());
    report.mutable_task()->mutable_tokenize()->set_decoded(decoded);
    worker->Report(report);
  }
};

TEST_F(ServerTasksTest, AnIdleWorkerTokenizesAndTheCoordinatorTellsItThatItHasTheAnswer) {
  MakeModel("m");
  const auto worker = NewWorker("w1");
  const auto call = Tokenize("some text");
  const v1::TaskCommand task = AwaitTask(worker.get());
  EXPECT_EQ(task.tokenize().request().text(), "some text");
  EXPECT_EQ(task.tokenize().model_path(), store() + "/models/m");
  ReportTokens(worker.get(), task, "some text");
  QST_ASSERT_OK(call->Await());
  EXPECT_EQ(call->response().decoded(), "some text");
  const auto cancel = worker->Await(v1::WorkerCommand::kCancelTask);
  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->cancel_task().task_id(), task.task_id());
}

TEST_F(ServerTasksTest, ATaskWaitsForAWorkerAndThenSaysThatThereIsNone) {
  MakeModel("m");
  const auto first = Tokenize("a");
  // So that the request is there first, as a rule; the answer is the same if it is not.
  absl::SleepFor(absl::Milliseconds(200));
  const auto worker = NewWorker("w1");
  ReportTokens(worker.get(), AwaitTask(worker.get()), "a");
  QST_EXPECT_OK(first->Await());
  worker->Disconnect().IgnoreError();
  AwaitWorker("w1", v1::WORKER_STATE_LOST);
  const auto second = Tokenize("b");
  while (!second->is_over()) Advance(absl::Seconds(1));
  EXPECT_THAT(second->Await(), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("no worker is connected")));
}

TEST_F(ServerTasksTest, BusyWorkersDoTasksToo) {
  const std::string job = SubmitJob(1, 1);
  const auto worker = NewWorker("w1");
  ASSERT_EQ(worker->AwaitParts(2).size(), 2u);
  const auto call = Tokenize("beside a job");
  ReportTokens(worker.get(), AwaitTask(worker.get()), "x");
  QST_EXPECT_OK(call->Await());
  QST_EXPECT_OK(Cancel(job));
}

TEST_F(ServerTasksTest, TasksGoToTheWorkerWithTheLeastToDo) {
  MakeModel("m");
  const auto w1 = NewWorker("w1");
  const auto w2 = NewWorker("w2");
  const auto a = Tokenize("a");
  const v1::TaskCommand on_w1 = AwaitTask(w1.get());
  const auto b = Tokenize("b");
  const v1::TaskCommand on_w2 = AwaitTask(w2.get());
  ReportTokens(w1.get(), on_w1, "a");
  ReportTokens(w2.get(), on_w2, "b");
  QST_EXPECT_OK(a->Await());
  QST_EXPECT_OK(b->Await());
}

TEST_F(ServerTasksTest, ALostWorkersTaskIsDoneByAnotherOnce) {
  MakeModel("m");
  auto w1 = NewWorker("w1");
  const auto call = Tokenize("again");
  AwaitTask(w1.get());
  auto w2 = NewWorker("w2");
  w1.reset();
  AwaitWorker("w1", v1::WORKER_STATE_LOST);
  Advance(absl::Seconds(6));
  EXPECT_EQ(AwaitTask(w2.get()).tokenize().request().text(), "again");
  const auto w3 = NewWorker("w3");
  w2.reset();
  AwaitWorker("w2", v1::WORKER_STATE_LOST);
  Advance(absl::Seconds(6));
  EXPECT_THAT(call->Await(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker w2")));
}

TEST_F(ServerTasksTest, AWorkerThatComesBackIsToldItsTaskAgain) {
  MakeModel("m");
  auto worker = NewWorker("w1");
  const auto call = Tokenize("x");
  const v1::TaskCommand task = AwaitTask(worker.get());
  worker.reset();
  AwaitWorker("w1", v1::WORKER_STATE_LOST);
  worker = NewWorker("w1");
  EXPECT_EQ(AwaitTask(worker.get()).task_id(), task.task_id());
  ReportTokens(worker.get(), task, "x");
  QST_EXPECT_OK(call->Await());
}

TEST_F(ServerTasksTest, WhenTheCallerGoesTheWorkerIsToldToStop) {
  MakeModel("m");
  const auto worker = NewWorker("w1");
  const auto call = Tokenize("x");
  const v1::TaskCommand task = AwaitTask(worker.get());
  call->Cancel();
  EXPECT_THAT(call->Await(), StatusIs(absl::StatusCode::kCancelled));
  const auto cancel = worker->Await(v1::WorkerCommand::kCancelTask);
  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->cancel_task().task_id(), task.task_id());
}

TEST_F(ServerTasksTest, ErrorsOfTheWorkerReachTheCallerAndAWrongAnswerIsOne) {
  MakeModel("m");
  const auto worker = NewWorker("w1");
  const auto call = Tokenize("x");
  v1::WorkerReport report;
  report.mutable_task()->set_task_id(AwaitTask(worker.get()).task_id());
  report.mutable_task()->mutable_error()->set_code(static_cast<int>(absl::StatusCode::kDataLoss));
  report.mutable_task()->mutable_error()->set_message("tokenizer.json is cut");
  worker->Report(report);
  EXPECT_THAT(call->Await(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tokenizer.json is cut")));
  const auto wrong = Tokenize("y");
  report.mutable_task()->set_task_id(AwaitTask(worker.get()).task_id());
  report.mutable_task()->mutable_export_model();
  worker->Report(report);
  EXPECT_THAT(wrong->Await(), StatusIs(absl::StatusCode::kInternal, HasSubstr("something else than was asked")));
}

TEST_F(ServerTasksTest, BadRequestsAreRefusedBeforeAnyWorkerHearsOfThem) {
  MakeModel("m");
  MakeDataset("d");
  EXPECT_THAT(Tokenize("x", "nobody")->Await(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("qst model list")));
  EXPECT_THAT(Tokenize("x", "")->Await(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model")));
  EXPECT_THAT(Tokenize(std::string(200'000, 'x'))->Await(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 131072 bytes")));
  v1::DescribeDatasetRequest request;
  request.set_dataset("nothing");
  EXPECT_THAT(Describe(request)->Await(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("qst dataset list")));
  request.set_dataset("d");
  request.set_render(2);
  EXPECT_THAT(Describe(request)->Await(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("needs a model")));
  request.set_model("m");
  request.mutable_data()->set_template_("alpca");
  EXPECT_THAT(Describe(request)->Await(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("data.template")));
  request.mutable_data()->set_template_("custom");
  EXPECT_THAT(Describe(request)->Await(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("custom_template")));
}

TEST_F(ServerTasksTest, ADescriptionHasTheDataSetsOwnEntryAndKeepsItWhileItIsRead) {
  MakeDataset("d");
  const auto worker = NewWorker("w1");
  v1::DescribeDatasetRequest request;
  request.set_dataset("d");
  const auto call = Describe(request);
  const v1::TaskCommand task = AwaitTask(worker.get());
  EXPECT_THAT(task.describe_dataset().dataset_path(), HasSubstr(store() + "/datasets/"));
  EXPECT_EQ(task.describe_dataset().file_name(), "d.jsonl");
  EXPECT_EQ(task.describe_dataset().model_path(), "");
  EXPECT_EQ(task.describe_dataset().request().data().max_length(), 512u) << "defaults are filled in";
  v1::DeleteDatasetRequest remove;
  remove.set_dataset("d");
  v1::DeleteDatasetResponse removed;
  EXPECT_THAT(FromGrpcStatus(api()->DeleteDataset(Context().get(), remove, &removed)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  v1::WorkerReport report;
  report.mutable_task()->set_task_id(task.task_id());
  report.mutable_task()->mutable_describe_dataset()->set_num_examples(7);
  worker->Report(report);
  QST_ASSERT_OK(call->Await());
  EXPECT_EQ(call->response().num_examples(), 7u);
  EXPECT_EQ(call->response().dataset().name(), "d");
}

TEST_F(ServerTasksTest, AnExportStreamsProgressAndIsNotRepeated) {
  MakeModel("m");
  auto worker = NewWorker("w1");
  v1::ExportModelRequest request;
  request.set_name("m");
  request.set_destination_path("relative");
  v1::ExportModelResponse response;
  {
    const auto context = Context();
    EXPECT_THAT(FromGrpcStatus(api()->ExportModel(context.get(), request)->Finish()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("must be absolute")));
  }
  request.set_destination_path("/tmp/out");
  request.set_dtype("f16");
  {
    const auto context = Context();
    EXPECT_THAT(FromGrpcStatus(api()->ExportModel(context.get(), request)->Finish()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("dtype")));
  }
  request.clear_dtype();
  {
    const auto context = Context();
    const auto reader = api()->ExportModel(context.get(), request);
    const v1::TaskCommand task = AwaitTask(worker.get());
    EXPECT_EQ(task.export_model().request().destination_path(), "/tmp/out");
    v1::WorkerReport report;
    report.mutable_task()->set_task_id(task.task_id());
    report.mutable_task()->mutable_progress()->set_bytes_done(5);
    worker->Report(report);
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.bytes_done(), 5u);
    report.mutable_task()->mutable_export_model()->set_path("/tmp/out");
    worker->Report(report);
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.path(), "/tmp/out");
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_TRUE(reader->Finish().ok());
  }
  const auto context = Context();
  const auto reader = api()->ExportModel(context.get(), request);
  AwaitTask(worker.get());
  const auto other = NewWorker("w2");
  worker.reset();
  AwaitWorker("w1", v1::WORKER_STATE_LOST);
  Advance(absl::Seconds(6));
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_THAT(FromGrpcStatus(reader->Finish()), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker w1")));
}

}  // namespace
}  // namespace qst
