#include "client/testing/fake_coordinator.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/qst/v1/coordinator.grpc.pb.h"
#include "proto/support/grpc_status.h"

namespace qst {

using grpc::ServerContext;
using grpc::ServerWriter;

class FakeCoordinator::Service final : public v1::Coordinator::Service {
 public:
  explicit Service(FakeCoordinator* owner) : o_(*owner) {}

  grpc::Status SubmitJob(ServerContext*, const v1::SubmitJobRequest* request,
                         v1::SubmitJobResponse* response) override {
    std::function<void(const v1::Job&)> on_submit;
    bool lose_answer = false;
    {
      absl::MutexLock lock(&o_.mutex_);
      if (!o_.script_.refuse.ok()) return ToGrpcStatus(o_.script_.refuse);
      o_.submits_.push_back(*request);
      lose_answer = o_.script_.lost_submit_answers-- > 0;
      const auto known = o_.job_of_request_.find(request->request_id());
      if (known != o_.job_of_request_.end()) {
        *response->mutable_job() = *o_.FindJob(known->second);
      } else {
        on_submit = o_.script_.on_submit;
      }
    }
    if (!response->has_job()) {
      v1::Job job;
      *job.mutable_spec() = request->spec();
      *response->mutable_job() = o_.AddJob(job);
      absl::MutexLock lock(&o_.mutex_);
      o_.job_of_request_[request->request_id()] = response->job().id();
    }
    if (on_submit) on_submit(response->job());
    if (lose_answer) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "answer lost");
    return grpc::Status::OK;
  }

  grpc::Status GetJob(ServerContext*, const v1::GetJobRequest* request, v1::GetJobResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    const v1::Job* job = o_.FindJob(request->job_id());
    if (job == nullptr) return NoJob(request->job_id());
    *response->mutable_job() = *job;
    return grpc::Status::OK;
  }

  grpc::Status ListJobs(ServerContext* context, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    while (o_.script_.jobs_hang && !o_.stopping_ && !context->IsCancelled()) {
      o_.mutex_.AwaitWithTimeout(absl::Condition(&o_.stopping_), absl::Milliseconds(20));
    }
    for (auto job = o_.jobs_.rbegin(); job != o_.jobs_.rend(); ++job) {
      if (request->states().empty() ||
          std::count(request->states().begin(), request->states().end(), job->state()) > 0) {
        *response->add_jobs() = *job;
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status CancelJob(ServerContext*, const v1::CancelJobRequest* request,
                         v1::CancelJobResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    const v1::Job* job = o_.FindJob(request->job_id());
    if (job == nullptr) return NoJob(request->job_id());
    *response->mutable_job() = *job;
    return grpc::Status::OK;
  }

  grpc::Status WatchJob(ServerContext* context, const v1::WatchJobRequest* request,
                        ServerWriter<v1::WatchJobResponse>* writer) override {
    uint64_t last = request->after_sequence();
    while (true) {
      v1::WatchJobResponse response;
      {
        absl::MutexLock lock(&o_.mutex_);
        if (o_.FindJob(request->job_id()) == nullptr) return NoJob(request->job_id());
        const auto& events = o_.events_[request->job_id()];
        const auto ready = [&] { return events.size() > last || o_.stopping_; };
        while (!ready() && !context->IsCancelled()) {
          o_.mutex_.AwaitWithTimeout(absl::Condition(&ready), absl::Milliseconds(20));
        }
        if (o_.stopping_ || context->IsCancelled()) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "shutting down");
        *response.mutable_event() = events[last];
      }
      if (!writer->Write(response)) return grpc::Status::OK;
      last = response.event().sequence();
      absl::MutexLock lock(&o_.mutex_);
      o_.sent_[request->job_id()] = std::max(o_.sent_[request->job_id()], last);
      const v1::JobState state = response.event().state().to();
      if (state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_CANCELLED) {
        return grpc::Status::OK;
      }
    }
  }

  grpc::Status DownloadResults(ServerContext*, const v1::DownloadResultsRequest* request,
                               ServerWriter<v1::DownloadResultsResponse>* writer) override {
    absl::MutexLock lock(&o_.mutex_);
    if (o_.FindJob(request->job_id()) == nullptr) return NoJob(request->job_id());
    for (const v1::DownloadResultsResponse& piece : o_.script_.results) writer->Write(piece);
    return grpc::Status::OK;
  }

  grpc::Status UploadDataset(ServerContext*, grpc::ServerReader<v1::UploadDatasetRequest>* reader,
                             v1::UploadDatasetResponse* response) override {
    v1::UploadDatasetRequest request;
    v1::UploadDatasetHeader header;
    std::string content;
    while (reader->Read(&request)) {
      if (request.has_header()) header = request.header();
      if (request.data().size() > (1 << 20)) {
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a piece is larger than 1 MiB");
      }
      content += request.data();
    }
    absl::MutexLock lock(&o_.mutex_);
    ++o_.num_uploads_;
    response->set_already_stored(o_.contents_.count(header.sha256()) > 0);
    o_.contents_[header.sha256()] = content;
    v1::Dataset& dataset = o_.datasets_[header.sha256()];
    dataset.set_id(header.sha256());
    if (!header.name().empty()) dataset.set_name(header.name());
    dataset.set_file_name(header.file_name());
    dataset.set_size_bytes(content.size());
    *response->mutable_dataset() = dataset;
    return grpc::Status::OK;
  }

  grpc::Status ListDatasets(ServerContext*, const v1::ListDatasetsRequest*,
                            v1::ListDatasetsResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    for (const auto& [id, dataset] : o_.datasets_) *response->add_datasets() = dataset;
    return grpc::Status::OK;
  }

  grpc::Status DeleteDataset(ServerContext*, const v1::DeleteDatasetRequest* request,
                             v1::DeleteDatasetResponse*) override {
    absl::MutexLock lock(&o_.mutex_);
    for (const auto& [id, dataset] : o_.datasets_) {
      if (id != request->dataset() && dataset.name() != request->dataset()) continue;
      o_.datasets_.erase(std::string(id));
      return grpc::Status::OK;
    }
    return grpc::Status(grpc::StatusCode::NOT_FOUND, absl::StrCat("no data set ", request->dataset()));
  }

  grpc::Status ImportModel(ServerContext*, const v1::ImportModelRequest* request,
                           v1::ImportModelResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    o_.imports_.push_back(*request);
    if (!o_.script_.refuse.ok()) return ToGrpcStatus(o_.script_.refuse);
    v1::Model& model = o_.models_[request->name()];
    model.set_name(request->name());
    model.set_state(v1::MODEL_STATE_IMPORTING);
    *response->mutable_model() = model;
    return grpc::Status::OK;
  }

  grpc::Status WatchModel(ServerContext*, const v1::WatchModelRequest*,
                          ServerWriter<v1::WatchModelResponse>* writer) override {
    absl::MutexLock lock(&o_.mutex_);
    for (const v1::Model& model : o_.script_.model_changes) {
      v1::WatchModelResponse response;
      *response.mutable_model() = model;
      writer->Write(response);
      o_.models_[model.name()] = model;
    }
    return grpc::Status::OK;
  }

  grpc::Status GetModel(ServerContext*, const v1::GetModelRequest* request, v1::GetModelResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    const auto model = o_.models_.find(request->name());
    if (model == o_.models_.end()) return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model");
    *response->mutable_model() = model->second;
    return grpc::Status::OK;
  }

  grpc::Status ListModels(ServerContext*, const v1::ListModelsRequest*, v1::ListModelsResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    for (const auto& [name, model] : o_.models_) *response->add_models() = model;
    return grpc::Status::OK;
  }

  grpc::Status DeleteModel(ServerContext*, const v1::DeleteModelRequest* request, v1::DeleteModelResponse*) override {
    absl::MutexLock lock(&o_.mutex_);
    if (o_.models_.erase(request->name()) == 0) return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model");
    return grpc::Status::OK;
  }

  grpc::Status ListWorkers(ServerContext*, const v1::ListWorkersRequest*, v1::ListWorkersResponse* response) override {
    std::function<std::vector<v1::Worker>()> workers;
    {
      absl::MutexLock lock(&o_.mutex_);
      workers = o_.workers_;
    }
    if (!workers) return grpc::Status::OK;
    for (const v1::Worker& worker : workers()) *response->add_workers() = worker;
    return grpc::Status::OK;
  }

  grpc::Status Generate(ServerContext*, const v1::GenerateRequest* request,
                        ServerWriter<v1::GenerateResponse>* writer) override {
    absl::MutexLock lock(&o_.mutex_);
    o_.generates_.push_back(*request);
    if (!o_.script_.refuse.ok()) return ToGrpcStatus(o_.script_.refuse);
    for (const v1::GenerateResponse& piece : o_.script_.generated) writer->Write(piece);
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(ServerContext*, const v1::TokenizeRequest* request, v1::TokenizeResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    o_.tokenizes_.push_back(*request);
    if (!o_.script_.refuse.ok()) return ToGrpcStatus(o_.script_.refuse);
    *response = o_.script_.tokens;
    return grpc::Status::OK;
  }

  grpc::Status DescribeDataset(ServerContext*, const v1::DescribeDatasetRequest* request,
                               v1::DescribeDatasetResponse* response) override {
    absl::MutexLock lock(&o_.mutex_);
    o_.describes_.push_back(*request);
    if (!o_.script_.describe_error.ok()) return ToGrpcStatus(o_.script_.describe_error);
    *response = o_.script_.description;
    return grpc::Status::OK;
  }

  grpc::Status ExportModel(ServerContext*, const v1::ExportModelRequest* request,
                           ServerWriter<v1::ExportModelResponse>* writer) override {
    absl::MutexLock lock(&o_.mutex_);
    o_.exports_.push_back(*request);
    if (!o_.script_.refuse.ok()) return ToGrpcStatus(o_.script_.refuse);
    for (const v1::ExportModelResponse& piece : o_.script_.export_progress) writer->Write(piece);
    return grpc::Status::OK;
  }

 private:
  static grpc::Status NoJob(const std::string& id) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, absl::StrCat("no job ", id));
  }

  FakeCoordinator& o_;
};

struct FakeCoordinator::Server {
  std::unique_ptr<Service> service;
  std::unique_ptr<grpc::Server> server;
};

FakeCoordinator::FakeCoordinator() = default;
FakeCoordinator::~FakeCoordinator() { Stop(); }

bool FakeCoordinator::Start(const std::string& listen) {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = false;
  }
  server_ = std::make_unique<Server>();
  server_->service = std::make_unique<Service>(this);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(server_->service.get());
  server_->server = builder.BuildAndStart();
  if (server_->server == nullptr) {
    server_.reset();
    return false;
  }
  address_ = absl::StrCat(listen.substr(0, listen.rfind(':')), ":", port);
  return true;
}

void FakeCoordinator::Stop() {
  if (server_ == nullptr) return;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  server_->server->Shutdown(std::chrono::system_clock::now());
  server_->server->Wait();
  server_.reset();
}

std::string FakeCoordinator::address() const { return address_; }

v1::Job FakeCoordinator::AddJob(v1::Job job) {
  absl::MutexLock lock(&mutex_);
  if (job.id().empty()) job.set_id(absl::StrFormat("j-%08x", 0x0a000000 + jobs_.size()));
  if (job.state() == v1::JOB_STATE_UNSPECIFIED) job.set_state(v1::JOB_STATE_QUEUED);
  jobs_.push_back(job);
  return job;
}

void FakeCoordinator::AddEvent(const std::string& job_id, v1::JobEvent event) {
  absl::MutexLock lock(&mutex_);
  event.set_sequence(events_[job_id].size() + 1);
  v1::Job* job = FindJob(job_id);
  if (event.has_state()) job->set_state(event.state().to());
  if (event.has_progress()) *job->mutable_progress() = event.progress();
  events_[job_id].push_back(std::move(event));
}

void FakeCoordinator::AddState(const std::string& job_id, v1::JobState state, const std::string& message) {
  v1::JobEvent event;
  event.mutable_state()->set_to(state);
  event.mutable_state()->set_message(message);
  AddEvent(job_id, event);
}

void FakeCoordinator::AddProgress(const std::string& job_id, uint64_t step, uint64_t total) {
  v1::JobEvent event;
  event.mutable_progress()->set_step(step);
  event.mutable_progress()->set_total_steps(total);
  AddEvent(job_id, event);
}

void FakeCoordinator::AwaitSent(const std::string& job_id, uint64_t sequence) {
  absl::MutexLock lock(&mutex_);
  const auto sent = [&] { return sent_[job_id] >= sequence; };
  mutex_.Await(absl::Condition(&sent));
}

void FakeCoordinator::SetScript(Script script) {
  absl::MutexLock lock(&mutex_);
  script_ = std::move(script);
}
void FakeCoordinator::SetWorkers(std::function<std::vector<v1::Worker>()> workers) {
  absl::MutexLock lock(&mutex_);
  workers_ = std::move(workers);
}

std::vector<v1::SubmitJobRequest> FakeCoordinator::submits() const {
  absl::MutexLock lock(&mutex_);
  return submits_;
}
std::vector<v1::ImportModelRequest> FakeCoordinator::imports() const {
  absl::MutexLock lock(&mutex_);
  return imports_;
}
std::vector<v1::GenerateRequest> FakeCoordinator::generates() const {
  absl::MutexLock lock(&mutex_);
  return generates_;
}
std::vector<v1::TokenizeRequest> FakeCoordinator::tokenizes() const {
  absl::MutexLock lock(&mutex_);
  return tokenizes_;
}
std::vector<v1::DescribeDatasetRequest> FakeCoordinator::describes() const {
  absl::MutexLock lock(&mutex_);
  return describes_;
}
std::vector<v1::ExportModelRequest> FakeCoordinator::exports() const {
  absl::MutexLock lock(&mutex_);
  return exports_;
}
std::map<std::string, std::string> FakeCoordinator::dataset_contents() const {
  absl::MutexLock lock(&mutex_);
  return contents_;
}
int FakeCoordinator::num_uploads() const {
  absl::MutexLock lock(&mutex_);
  return num_uploads_;
}
size_t FakeCoordinator::num_jobs() const {
  absl::MutexLock lock(&mutex_);
  return jobs_.size();
}

v1::Job* FakeCoordinator::FindJob(const std::string& id) {
  for (v1::Job& job : jobs_) {
    if (job.id() == id) return &job;
  }
  return nullptr;
}

}  // namespace qst
