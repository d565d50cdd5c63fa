#include "server/api_service.h"

#include <utility>

#include "absl/status/status.h"
#include "proto/support/grpc_status.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Answers a unary call with what `handle` returns on the control loop.
template <typename Handle>
grpc::ServerUnaryReactor* RunOnLoop(ControlLoop* loop, grpc::CallbackServerContext* context, Handle handle) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool is_posted = loop->Post([reactor, handle = std::move(handle)] { reactor->Finish(ToGrpcStatus(handle())); });
  if (!is_posted) reactor->Finish(ToGrpcStatus(absl::UnavailableError("the coordinator has stopped")));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ApiService::SubmitJob(grpc::CallbackServerContext* context,
                                                const v1::SubmitJobRequest* request, v1::SubmitJobResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_RETURN_IF_ERROR(coordinator_->CheckAccepting());
    QST_ASSIGN_OR_RETURN(*response->mutable_job(), coordinator_->jobs().Submit(*request));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::GetJob(grpc::CallbackServerContext* context, const v1::GetJobRequest* request,
                                             v1::GetJobResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_ASSIGN_OR_RETURN(*response->mutable_job(), coordinator_->jobs().Get(request->job_id()));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::ListJobs(grpc::CallbackServerContext* context, const v1::ListJobsRequest* request,
                                               v1::ListJobsResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_ASSIGN_OR_RETURN(auto jobs, coordinator_->jobs().List(*request));
    for (v1::Job& job : jobs) *response->add_jobs() = std::move(job);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::CancelJob(grpc::CallbackServerContext* context,
                                                const v1::CancelJobRequest* request, v1::CancelJobResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_ASSIGN_OR_RETURN(*response->mutable_job(), coordinator_->jobs().Cancel(request->job_id()));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::ListDatasets(grpc::CallbackServerContext* context,
                                                   const v1::ListDatasetsRequest* /*request*/,
                                                   v1::ListDatasetsResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_ASSIGN_OR_RETURN(auto datasets, coordinator_->datasets().List());
    for (v1::Dataset& dataset : datasets) *response->add_datasets() = std::move(dataset);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::DeleteDataset(grpc::CallbackServerContext* context,
                                                    const v1::DeleteDatasetRequest* request,
                                                    v1::DeleteDatasetResponse* /*response*/) {
  return RunOnLoop(loop_, context, [=] { return coordinator_->datasets().Delete(request->dataset()); });
}

grpc::ServerUnaryReactor* ApiService::ImportModel(grpc::CallbackServerContext* context,
                                                  const v1::ImportModelRequest* request,
                                                  v1::ImportModelResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_RETURN_IF_ERROR(coordinator_->CheckAccepting());
    QST_ASSIGN_OR_RETURN(*response->mutable_model(), coordinator_->models().Import(*request));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                               v1::GetModelResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_ASSIGN_OR_RETURN(*response->mutable_model(), coordinator_->models().Get(request->name()));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::ListModels(grpc::CallbackServerContext* context,
                                                 const v1::ListModelsRequest* /*request*/,
                                                 v1::ListModelsResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    QST_ASSIGN_OR_RETURN(auto models, coordinator_->models().List());
    for (v1::Model& model : models) *response->add_models() = std::move(model);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ApiService::DeleteModel(grpc::CallbackServerContext* context,
                                                  const v1::DeleteModelRequest* request,
                                                  v1::DeleteModelResponse* /*response*/) {
  return RunOnLoop(loop_, context, [=] { return coordinator_->models().Delete(request->name()); });
}

grpc::ServerUnaryReactor* ApiService::ListWorkers(grpc::CallbackServerContext* context,
                                                  const v1::ListWorkersRequest* /*request*/,
                                                  v1::ListWorkersResponse* response) {
  return RunOnLoop(loop_, context, [=]() -> absl::Status {
    for (v1::Worker& worker : coordinator_->registry().List()) *response->add_workers() = std::move(worker);
    return absl::OkStatus();
  });
}

}  // namespace qst
