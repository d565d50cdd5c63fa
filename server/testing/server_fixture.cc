#include "server/testing/server_fixture.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/grpc_status.h"
#include "server/log.h"
#include "server/store_layout.h"

namespace qst {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

}  // namespace

ServerFixture::ServerFixture() {
  store_ = absl::StrCat(testing::TempDir(), "/store-", RandomHex(12));
  std::filesystem::create_directories(store_);
  store_ = CanonicalPath(store_);
  StartServer();
}

ServerFixture::~ServerFixture() {
  server_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(store_, ignored);
}

void ServerFixture::StartServer() {
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.store = store_;
  options.clock = &clock_;
  auto server = Server::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  stub_ = v1::Coordinator::NewStub(grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
}

void ServerFixture::CrashServer() { server_.reset(); }

std::unique_ptr<grpc::ClientContext> ServerFixture::Context() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kPatience));
  return context;
}

void ServerFixture::Advance(absl::Duration by) {
  while (by > absl::ZeroDuration()) {
    const absl::Duration step = std::min(by, absl::Milliseconds(500));
    clock_.Advance(step);
    by -= step;
    // The control loop answers after it has run what became due.
    v1::ListWorkersResponse response;
    ASSERT_TRUE(api()->ListWorkers(Context().get(), {}, &response).ok());
  }
}

std::unique_ptr<FakeWorker> ServerFixture::NewWorker(const std::string& id, std::vector<v1::HostedPart> hosted,
                                                     const std::string& incarnation) {
  FakeWorker::Options options;
  options.id = id;
  options.incarnation = incarnation;
  options.store_path = store_;
  options.hosted = std::move(hosted);
  auto worker = std::make_unique<FakeWorker>(address(), options);
  EXPECT_TRUE(worker->Await(v1::WorkerCommand::kWelcome).has_value()) << "worker " << id << " is not welcome";
  return worker;
}

std::unique_ptr<FakeWorker> ServerFixture::NewCudaWorker(const std::string& id, const std::string& device,
                                                         std::uint64_t device_memory_bytes) {
  FakeWorker::Options options;
  options.id = id;
  options.store_path = store_;
  options.device = device;
  options.device_name = absl::StrCat("Test GPU (", device, ", sm_90)");
  options.device_memory_bytes = device_memory_bytes;
  auto worker = std::make_unique<FakeWorker>(address(), options);
  EXPECT_TRUE(worker->Await(v1::WorkerCommand::kWelcome).has_value()) << "worker " << id << " is not welcome";
  return worker;
}

void ServerFixture::AwaitWorker(const std::string& id, v1::WorkerState state) {
  const absl::Time give_up = absl::Now() + kPatience;
  while (absl::Now() < give_up) {
    v1::ListWorkersResponse response;
    ASSERT_TRUE(api()->ListWorkers(Context().get(), {}, &response).ok());
    for (const v1::Worker& worker : response.workers()) {
      if (worker.id() == id && worker.state() == state) return;
    }
    sched_yield();
  }
  FAIL() << "worker " << id << " never was " << v1::WorkerState_Name(state);
}

void ServerFixture::CompleteImport(FakeWorker* worker, const v1::ImportCommand& import) {
  std::filesystem::create_directories(import.destination_path());
  std::ofstream(import.destination_path() + "/model.safetensors") << import.source_path();
  v1::Model model;
  model.set_name(import.name());
  model.set_state(v1::MODEL_STATE_READY);
  *model.mutable_quantization() = import.quantization();
  model.set_architecture("llama");
  model.set_num_layers(6);
  for (int i = 0; i < 6; ++i) model.add_layers()->set_quantization_error(0.09);
  model.set_hidden_size(64);
  model.set_intermediate_size(160);
  model.set_num_heads(8);
  model.set_num_kv_heads(4);
  model.set_head_dim(8);
  model.set_vocab_size(1000);
  model.set_layer_bytes(30'000);
  model.set_embedding_bytes(128'000);
  worker->ReportModel(model);
}

void ServerFixture::MakeModel(const std::string& name) {
  auto worker = NewWorker("importer-of-" + name);
  v1::ImportModelRequest request;
  request.set_name(name);
  request.set_source_path("/models/" + name + ".gguf");
  v1::ImportModelResponse response;
  const grpc::Status status = api()->ImportModel(Context().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const auto command = worker->Await(v1::WorkerCommand::kImport);
  ASSERT_TRUE(command.has_value());
  CompleteImport(worker.get(), command->import());
  EXPECT_EQ(AwaitModel(name).state(), v1::MODEL_STATE_READY);
  worker.reset();
  AwaitWorker("importer-of-" + name, v1::WORKER_STATE_LOST);
  Advance(absl::Seconds(6));
}

v1::Model ServerFixture::AwaitModel(const std::string& name) {
  v1::WatchModelRequest request;
  request.set_name(name);
  const auto context = Context();
  const auto reader = api()->WatchModel(context.get(), request);
  v1::WatchModelResponse response;
  while (reader->Read(&response)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.model();
}

absl::StatusOr<v1::UploadDatasetResponse> ServerFixture::Upload(const v1::UploadDatasetHeader& header,
                                                                const std::vector<std::string>& pieces) {
  v1::UploadDatasetResponse response;
  const auto context = Context();
  const auto writer = api()->UploadDataset(context.get(), &response);
  v1::UploadDatasetRequest request;
  *request.mutable_header() = header;
  writer->Write(request);
  for (const std::string& piece : pieces) {
    request.set_data(piece);
    if (!writer->Write(request)) break;
  }
  writer->WritesDone();
  const absl::Status status = FromGrpcStatus(writer->Finish());
  if (!status.ok()) return status;
  return response;
}

void ServerFixture::MakeDataset(const std::string& name) {
  v1::UploadDatasetHeader header;
  header.set_name(name);
  header.set_file_name(name + ".jsonl");
  const auto uploaded = Upload(header, {absl::StrCat("{\"text\": \"", next_dataset_++, "\"}\n")});
  ASSERT_TRUE(uploaded.ok()) << uploaded.status();
}

v1::JobSpec ServerFixture::Spec(std::uint32_t stages, std::uint32_t workers) {
  v1::JobSpec spec;
  spec.set_name("test");
  spec.set_model("m");
  spec.mutable_data()->set_train("d");
  spec.mutable_resources()->set_stages(stages);
  spec.mutable_resources()->set_workers(workers);
  return spec;
}

absl::StatusOr<v1::Job> ServerFixture::Submit(const v1::JobSpec& spec, const std::string& request_id) {
  v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  request.set_request_id(request_id);
  v1::SubmitJobResponse response;
  const absl::Status status = FromGrpcStatus(api()->SubmitJob(Context().get(), request, &response));
  if (!status.ok()) return status;
  return response.job();
}

std::string ServerFixture::SubmitJob(std::uint32_t stages, std::uint32_t workers) {
  MakeModel("m");
  MakeDataset("d");
  const auto job = Submit(Spec(stages, workers));
  EXPECT_TRUE(job.ok()) << job.status();
  return job.ok() ? job->id() : "";
}

v1::Job ServerFixture::GetJob(const std::string& id) {
  v1::GetJobRequest request;
  request.set_job_id(id);
  v1::GetJobResponse response;
  const grpc::Status status = api()->GetJob(Context().get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.job();
}

absl::StatusOr<v1::Job> ServerFixture::Cancel(const std::string& id) {
  v1::CancelJobRequest request;
  request.set_job_id(id);
  v1::CancelJobResponse response;
  const absl::Status status = FromGrpcStatus(api()->CancelJob(Context().get(), request, &response));
  if (!status.ok()) return status;
  return response.job();
}

void ServerFixture::AwaitEvent(const std::string& id, const std::function<bool(const v1::JobEvent&)>& wanted) {
  v1::WatchJobRequest request;
  request.set_job_id(id);
  const auto context = Context();
  const auto reader = api()->WatchJob(context.get(), request);
  v1::WatchJobResponse response;
  std::string seen;
  while (reader->Read(&response)) {
    if (wanted(response.event())) {
      context->TryCancel();
      reader->Finish();
      return;
    }
    absl::StrAppend(&seen, response.event().ShortDebugString(), "\n");
  }
  FAIL() << "the event did not come; those that came:\n" << seen << reader->Finish().error_message();
}

void ServerFixture::AwaitState(const std::string& id, v1::JobState state) {
  SCOPED_TRACE(v1::JobState_Name(state));
  AwaitEvent(id, [&](const v1::JobEvent& event) { return event.has_state() && event.state().to() == state; });
}

void ServerFixture::AwaitMessage(const std::string& id, const std::string& part_of_message) {
  SCOPED_TRACE(part_of_message);
  AwaitEvent(id, [&](const v1::JobEvent& event) { return absl::StrContains(event.message(), part_of_message); });
}

std::vector<v1::JobEvent> ServerFixture::AllEvents(const std::string& id) {
  v1::WatchJobRequest request;
  request.set_job_id(id);
  const auto context = Context();
  const auto reader = api()->WatchJob(context.get(), request);
  std::vector<v1::JobEvent> events;
  v1::WatchJobResponse response;
  while (reader->Read(&response)) events.push_back(response.event());
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return events;
}

}  // namespace qst
