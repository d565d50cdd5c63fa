// The public API over gRPC: glue between the Coordinator service and the domain, which lives on the control loop.
#ifndef QST_SERVER_API_SERVICE_H_
#define QST_SERVER_API_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include "proto/qst/v1/coordinator.grpc.pb.h"
#include "server/control_loop.h"
#include "server/coordinator.h"
#include "server/store_layout.h"
#include "server/task_pool.h"

namespace qst {

// Reactions only post to the control loop or to the file pool. All three outlive the gRPC server.
class ApiService final : public v1::Coordinator::CallbackService {
 public:
  ApiService(ControlLoop* loop, TaskPool* files, Coordinator* coordinator, const StoreLayout& layout)
      : loop_(loop), files_(files), coordinator_(coordinator), layout_(layout) {}

  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* context, const v1::SubmitJobRequest* request,
                                      v1::SubmitJobResponse* response) override;
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context, const v1::GetJobRequest* request,
                                   v1::GetJobResponse* response) override;
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* context, const v1::ListJobsRequest* request,
                                     v1::ListJobsResponse* response) override;
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* context, const v1::CancelJobRequest* request,
                                      v1::CancelJobResponse* response) override;
  grpc::ServerUnaryReactor* ListDatasets(grpc::CallbackServerContext* context, const v1::ListDatasetsRequest* request,
                                         v1::ListDatasetsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteDataset(grpc::CallbackServerContext* context, const v1::DeleteDatasetRequest* request,
                                          v1::DeleteDatasetResponse* response) override;
  grpc::ServerUnaryReactor* ImportModel(grpc::CallbackServerContext* context, const v1::ImportModelRequest* request,
                                        v1::ImportModelResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteModel(grpc::CallbackServerContext* context, const v1::DeleteModelRequest* request,
                                        v1::DeleteModelResponse* response) override;
  grpc::ServerUnaryReactor* ListWorkers(grpc::CallbackServerContext* context, const v1::ListWorkersRequest* request,
                                        v1::ListWorkersResponse* response) override;

  // api_streams.cc
  grpc::ServerWriteReactor<v1::WatchJobResponse>* WatchJob(grpc::CallbackServerContext* context,
                                                           const v1::WatchJobRequest* request) override;
  grpc::ServerWriteReactor<v1::WatchModelResponse>* WatchModel(grpc::CallbackServerContext* context,
                                                               const v1::WatchModelRequest* request) override;
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override;
  // api_tasks.cc
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* DescribeDataset(grpc::CallbackServerContext* context,
                                            const v1::DescribeDatasetRequest* request,
                                            v1::DescribeDatasetResponse* response) override;
  grpc::ServerWriteReactor<v1::ExportModelResponse>* ExportModel(grpc::CallbackServerContext* context,
                                                                 const v1::ExportModelRequest* request) override;
  // api_transfers.cc
  grpc::ServerWriteReactor<v1::DownloadResultsResponse>* DownloadResults(
      grpc::CallbackServerContext* context, const v1::DownloadResultsRequest* request) override;
  grpc::ServerReadReactor<v1::UploadDatasetRequest>* UploadDataset(grpc::CallbackServerContext* context,
                                                                   v1::UploadDatasetResponse* response) override;

 private:
  ControlLoop* const loop_;
  TaskPool* const files_;
  Coordinator* const coordinator_;
  const StoreLayout layout_;
};

}  // namespace qst

#endif  // QST_SERVER_API_SERVICE_H_
