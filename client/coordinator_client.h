// The coordinator's API over gRPC. Only coordinator_client.cc includes gRPC: its headers are slow to compile.
//
// Every unary call has a deadline. Calls that may be repeated without harm are retried a few times while the
// connection fails. Errors: client/errors.h's UnreachableError if nothing answers; else what the coordinator said.
#ifndef QST_CLIENT_COORDINATOR_CLIENT_H_
#define QST_CLIENT_COORDINATOR_CLIENT_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/qst/v1/coordinator.pb.h"

namespace qst {

// Stops a streaming call from another thread. Thread-safe; one call at a time.
class CallCanceller {
 public:
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class CoordinatorClient;
  // Calls `on_cancel` upon Cancel(), at once if that was before; null = no call is running.
  void SetCallback(std::function<void()> on_cancel) ABSL_LOCKS_EXCLUDED(mutex_);
  // Returns early with true when cancelled.
  bool Sleep(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void()> on_cancel_ ABSL_GUARDED_BY(mutex_);
};

struct FollowOptions {
  // How long to keep trying when the coordinator goes away.
  absl::Duration reconnect_for = absl::Minutes(2);
  // Told once per loss of the connection, and once when it is back. May be null.
  std::function<void(const std::string&)> on_notice;
  // May be null.
  CallCanceller* canceller = nullptr;
  // Return when this long nothing came. Infinite: wait for the final state.
  absl::Duration idle_limit = absl::InfiniteDuration();
};

// Thread-safe but for the streams, of which one runs at a time.
class CoordinatorClient {
 public:
  struct Options {
    // "HOST:PORT".
    std::string address;
    // Deadline of unary calls.
    absl::Duration timeout = absl::Seconds(30);
  };

  // Connects with the first call.
  explicit CoordinatorClient(const Options& options);
  ~CoordinatorClient();

  const std::string& address() const;
  // Whether the address is on this machine's loopback.
  bool IsLocal() const;

  absl::StatusOr<v1::SubmitJobResponse> SubmitJob(const v1::JobSpec& spec);
  absl::StatusOr<v1::GetJobResponse> GetJob(const std::string& job_id);
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const v1::ListJobsRequest& request);
  absl::StatusOr<v1::CancelJobResponse> CancelJob(const std::string& job_id);
  absl::StatusOr<v1::ListDatasetsResponse> ListDatasets();
  absl::StatusOr<v1::DeleteDatasetResponse> DeleteDataset(const std::string& dataset);
  absl::StatusOr<v1::ImportModelResponse> ImportModel(const v1::ImportModelRequest& request);
  absl::StatusOr<v1::GetModelResponse> GetModel(const std::string& name);
  absl::StatusOr<v1::ListModelsResponse> ListModels();
  absl::StatusOr<v1::DeleteModelResponse> DeleteModel(const std::string& name);
  absl::StatusOr<v1::ListWorkersResponse> ListWorkers();

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  // However long it takes: data sets may be large. `canceller` may be null.
  absl::StatusOr<v1::DescribeDatasetResponse> DescribeDataset(const v1::DescribeDatasetRequest& request,
                                                              CallCanceller* canceller);

  // Passes every event after `after_sequence` once and in order, across restarts of the coordinator; returns after
  // the final state. kCancelled if cancelled.
  absl::Status WatchJob(const std::string& job_id, uint64_t after_sequence, const FollowOptions& options,
                        absl::FunctionRef<void(const v1::JobEvent&)> on_event);

  // Passes the model whenever it changes; returns the READY or FAILED one.
  absl::StatusOr<v1::Model> WatchModel(const std::string& name, const FollowOptions& options,
                                       absl::FunctionRef<void(const v1::Model&)> on_change);

  // Sends what `next_piece` gives until it gives an empty piece; its error ends the call.
  absl::StatusOr<v1::UploadDatasetResponse> UploadDataset(const v1::UploadDatasetHeader& header, uint64_t size_bytes,
                                                          absl::FunctionRef<absl::StatusOr<std::string>()> next_piece);

  // Passes every message; an error of `on_piece` ends the call and is returned.
  absl::Status DownloadResults(const std::string& job_id,
                               absl::FunctionRef<absl::Status(const v1::DownloadResultsResponse&)> on_piece);

  // Passes text as it comes. `canceller` may be null.
  absl::Status Generate(const v1::GenerateRequest& request, CallCanceller* canceller,
                        absl::FunctionRef<void(const v1::GenerateResponse&)> on_text);

  // Passes every message; the last one names the folder. `canceller` may be null.
  absl::Status ExportModel(const v1::ExportModelRequest& request, CallCanceller* canceller,
                           absl::FunctionRef<void(const v1::ExportModelResponse&)> on_progress);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// 128 random bits in hex.
std::string RandomRequestId();

}  // namespace qst

#endif  // QST_CLIENT_COORDINATOR_CLIENT_H_
