#include "client/coordinator_client.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <random>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/errors.h"
#include "client/progress_view.h"
#include "proto/qst/v1/coordinator.grpc.pb.h"
#include "proto/support/grpc_status.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Repeated only where a second call does the same as one: reads, and calls that carry a request_id.
constexpr char kServiceConfig[] = R"({
  "methodConfig": [{
    "name": [
      {"service": "qst.v1.Coordinator", "method": "SubmitJob"},
      {"service": "qst.v1.Coordinator", "method": "CancelJob"},
      {"service": "qst.v1.Coordinator", "method": "GetJob"},
      {"service": "qst.v1.Coordinator", "method": "ListJobs"},
      {"service": "qst.v1.Coordinator", "method": "GetModel"},
      {"service": "qst.v1.Coordinator", "method": "ListModels"},
      {"service": "qst.v1.Coordinator", "method": "ListDatasets"},
      {"service": "qst.v1.Coordinator", "method": "ListWorkers"}
    ],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.1s",
      "maxBackoff": "1s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
})";

constexpr int kMaxReceiveBytes = 64 << 20;

gpr_timespec Deadline(absl::Duration timeout) {
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout);
  return grpc::TimePoint<std::chrono::system_clock::time_point>(deadline).raw_time();
}

// Cancels a call when nothing has happened for a while.
class IdleWatchdog {
 public:
  IdleWatchdog(absl::Duration limit, grpc::ClientContext* context) : limit_(limit), context_(context) {
    if (limit_ < absl::InfiniteDuration()) thread_ = std::thread([this] { Run(); });
  }
  ~IdleWatchdog() {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }
  void Touch() {
    absl::MutexLock lock(&mutex_);
    last_ = absl::Now();
  }
  bool fired() const {
    absl::MutexLock lock(&mutex_);
    return fired_;
  }

 private:
  void Run() {
    absl::MutexLock lock(&mutex_);
    while (!stop_) {
      if (absl::Now() - last_ >= limit_) {
        fired_ = true;
        context_->TryCancel();
        return;
      }
      mutex_.AwaitWithDeadline(absl::Condition(&stop_), last_ + limit_);
    }
  }

  const absl::Duration limit_;
  grpc::ClientContext* const context_;
  mutable absl::Mutex mutex_;
  absl::Time last_ ABSL_GUARDED_BY(mutex_) = absl::Now();
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool fired_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace

void CallCanceller::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (on_cancel_) on_cancel_();
}

bool CallCanceller::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void CallCanceller::SetCallback(std::function<void()> on_cancel) {
  absl::MutexLock lock(&mutex_);
  on_cancel_ = std::move(on_cancel);
  if (cancelled_ && on_cancel_) on_cancel_();
}

bool CallCanceller::Sleep(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), duration);
}

struct CoordinatorClient::Impl {
  explicit Impl(const Options& given) : options(given) {
    grpc::ChannelArguments arguments;
    arguments.SetServiceConfigJSON(kServiceConfig);
    arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
    // A proxy of the environment is for the web, not for a coordinator.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel = grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments);
    stub = v1::Coordinator::NewStub(channel);
  }

  // Tells a coordinator that cannot be reached from one that answers with an error.
  absl::Status Convert(const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    const bool connected = channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY;
    if (!connected && (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                       status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED)) {
      return UnreachableError(options.address, "");
    }
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      return absl::DeadlineExceededError(absl::StrCat("the coordinator at ", options.address, " gave no answer in ",
                                                      absl::FormatDuration(options.timeout),
                                                      "; give it longer with --timeout"));
    }
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
      return absl::UnimplementedError(absl::StrCat("the coordinator at ", options.address,
                                                   " does not know this request; is it of another version? (",
                                                   status.error_message(), ")"));
    }
    return FromGrpcStatus(status);
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Unary(grpc::Status (v1::Coordinator::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                               Response*),
                                 const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(Deadline(options.timeout));
    Response response;
    const absl::Status status = Convert((stub.get()->*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

  // Runs a server stream that may be taken up again after a loss of the connection. `open` starts it; `on_message`
  // says whether the stream has reached its end. Returns OK at that end or when idle.
  template <typename Response, typename Open, typename OnMessage>
  absl::Status Follow(const FollowOptions& options, Open open, OnMessage on_message) {
    CallCanceller own;
    CallCanceller* canceller = options.canceller != nullptr ? options.canceller : &own;
    absl::Time lost_at = absl::InfiniteFuture();
    while (true) {
      bool complete = false;
      grpc::Status status;
      {
        grpc::ClientContext context;
        IdleWatchdog watchdog(options.idle_limit, &context);
        canceller->SetCallback([&context] { context.TryCancel(); });
        auto reader = open(&context);
        Response response;
        while (reader->Read(&response)) {
          watchdog.Touch();
          if (lost_at != absl::InfiniteFuture()) {
            lost_at = absl::InfiniteFuture();
            if (options.on_notice) options.on_notice("connected to the coordinator again");
          }
          complete = on_message(response) || complete;
          response.Clear();
        }
        status = reader->Finish();
        canceller->SetCallback(nullptr);
        if (watchdog.fired()) return absl::OkStatus();
      }
      if (canceller->cancelled()) return absl::CancelledError("stopped");
      if (complete) return absl::OkStatus();
      // A coordinator that shuts down ends its streams in one of these ways.
      const bool may_return = status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                              status.error_code() == grpc::StatusCode::CANCELLED ||
                              status.error_code() == grpc::StatusCode::ABORTED;
      if (!may_return) return Convert(status);
      if (lost_at == absl::InfiniteFuture()) {
        lost_at = absl::Now();
        if (options.on_notice) {
          options.on_notice(absl::StrCat("lost the coordinator at ", this->options.address, "; trying for ",
                                         absl::FormatDuration(options.reconnect_for)));
        }
      }
      if (absl::Now() - lost_at > options.reconnect_for) {
        return UnreachableError(this->options.address,
                                absl::StrCat("tried for ", absl::FormatDuration(options.reconnect_for)));
      }
      if (canceller->Sleep(absl::Milliseconds(300))) return absl::CancelledError("stopped");
    }
  }

  // Reads a server stream to its end, unless it is cancelled.
  template <typename Response, typename Open>
  absl::Status ReadAll(CallCanceller* canceller, Open open, absl::FunctionRef<void(const Response&)> on_message) {
    grpc::ClientContext context;
    if (canceller != nullptr) canceller->SetCallback([&context] { context.TryCancel(); });
    auto reader = open(&context);
    Response response;
    while (reader->Read(&response)) {
      on_message(response);
      response.Clear();
    }
    const grpc::Status status = reader->Finish();
    if (canceller != nullptr) {
      canceller->SetCallback(nullptr);
      if (canceller->cancelled()) return absl::CancelledError("stopped");
    }
    return Convert(status);
  }

  const Options options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Coordinator::Stub> stub;
};

CoordinatorClient::CoordinatorClient(const Options& options) : impl_(std::make_unique<Impl>(options)) {}
CoordinatorClient::~CoordinatorClient() = default;

const std::string& CoordinatorClient::address() const { return impl_->options.address; }

bool CoordinatorClient::IsLocal() const {
  const std::string& a = address();
  return absl::StartsWith(a, "127.") || absl::StartsWith(a, "localhost:") || absl::StartsWith(a, "[::1]:");
}

absl::StatusOr<v1::SubmitJobResponse> CoordinatorClient::SubmitJob(const v1::JobSpec& spec) {
  v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  request.set_request_id(RandomRequestId());
  return impl_->Unary(&v1::Coordinator::Stub::SubmitJob, request);
}

absl::StatusOr<v1::GetJobResponse> CoordinatorClient::GetJob(const std::string& job_id) {
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  return impl_->Unary(&v1::Coordinator::Stub::GetJob, request);
}

absl::StatusOr<v1::ListJobsResponse> CoordinatorClient::ListJobs(const v1::ListJobsRequest& request) {
  return impl_->Unary(&v1::Coordinator::Stub::ListJobs, request);
}

absl::StatusOr<v1::CancelJobResponse> CoordinatorClient::CancelJob(const std::string& job_id) {
  v1::CancelJobRequest request;
  request.set_job_id(job_id);
  return impl_->Unary(&v1::Coordinator::Stub::CancelJob, request);
}

absl::StatusOr<v1::ListDatasetsResponse> CoordinatorClient::ListDatasets() {
  return impl_->Unary(&v1::Coordinator::Stub::ListDatasets, v1::ListDatasetsRequest());
}

absl::StatusOr<v1::DeleteDatasetResponse> CoordinatorClient::DeleteDataset(const std::string& dataset) {
  v1::DeleteDatasetRequest request;
  request.set_dataset(dataset);
  return impl_->Unary(&v1::Coordinator::Stub::DeleteDataset, request);
}

absl::StatusOr<v1::ImportModelResponse> CoordinatorClient::ImportModel(const v1::ImportModelRequest& request) {
  return impl_->Unary(&v1::Coordinator::Stub::ImportModel, request);
}

absl::StatusOr<v1::GetModelResponse> CoordinatorClient::GetModel(const std::string& name) {
  v1::GetModelRequest request;
  request.set_name(name);
  return impl_->Unary(&v1::Coordinator::Stub::GetModel, request);
}

absl::StatusOr<v1::ListModelsResponse> CoordinatorClient::ListModels() {
  return impl_->Unary(&v1::Coordinator::Stub::ListModels, v1::ListModelsRequest());
}

absl::StatusOr<v1::DeleteModelResponse> CoordinatorClient::DeleteModel(const std::string& name) {
  v1::DeleteModelRequest request;
  request.set_name(name);
  return impl_->Unary(&v1::Coordinator::Stub::DeleteModel, request);
}

absl::StatusOr<v1::ListWorkersResponse> CoordinatorClient::ListWorkers() {
  return impl_->Unary(&v1::Coordinator::Stub::ListWorkers, v1::ListWorkersRequest());
}

absl::Status CoordinatorClient::WatchJob(const std::string& job_id, uint64_t after_sequence,
                                         const FollowOptions& options,
                                         absl::FunctionRef<void(const v1::JobEvent&)> on_event) {
  uint64_t last = after_sequence;
  return impl_->Follow<v1::WatchJobResponse>(
      options,
      [&](grpc::ClientContext* context) {
        v1::WatchJobRequest request;
        request.set_job_id(job_id);
        request.set_after_sequence(last);
        return impl_->stub->WatchJob(context, request);
      },
      [&](const v1::WatchJobResponse& response) {
        const v1::JobEvent& event = response.event();
        // Progress that the coordinator does not store has no number and never comes twice.
        if (event.sequence() != 0) {
          if (event.sequence() <= last) return false;
          last = event.sequence();
        }
        on_event(event);
        return event.has_state() && IsFinal(event.state().to());
      });
}

absl::StatusOr<v1::Model> CoordinatorClient::WatchModel(const std::string& name, const FollowOptions& options,
                                                        absl::FunctionRef<void(const v1::Model&)> on_change) {
  v1::Model model;
  const absl::Status status = impl_->Follow<v1::WatchModelResponse>(
      options,
      [&](grpc::ClientContext* context) {
        v1::WatchModelRequest request;
        request.set_name(name);
        return impl_->stub->WatchModel(context, request);
      },
      [&](const v1::WatchModelResponse& response) {
        model = response.model();
        on_change(model);
        return model.state() == v1::MODEL_STATE_READY || model.state() == v1::MODEL_STATE_FAILED;
      });
  if (!status.ok()) return status;
  return model;
}

absl::StatusOr<v1::UploadDatasetResponse> CoordinatorClient::UploadDataset(
    const v1::UploadDatasetHeader& header, uint64_t size_bytes,
    absl::FunctionRef<absl::StatusOr<std::string>()> next_piece) {
  grpc::ClientContext context;
  // One more second for every MiB: slower than that is a dead connection.
  context.set_deadline(Deadline(impl_->options.timeout + absl::Seconds(size_bytes >> 20)));
  v1::UploadDatasetResponse response;
  auto writer = impl_->stub->UploadDataset(&context, &response);
  v1::UploadDatasetRequest request;
  *request.mutable_header() = header;
  bool open = writer->Write(request);
  while (open) {
    absl::StatusOr<std::string> piece = next_piece();
    if (!piece.ok()) {
      context.TryCancel();
      writer->Finish().error_code();
      return piece.status();
    }
    if (piece->empty()) break;
    request.set_data(*std::move(piece));
    open = writer->Write(request);
  }
  writer->WritesDone();
  const absl::Status status = impl_->Convert(writer->Finish());
  if (!status.ok()) return status;
  return response;
}

absl::Status CoordinatorClient::DownloadResults(
    const std::string& job_id, absl::FunctionRef<absl::Status(const v1::DownloadResultsResponse&)> on_piece) {
  grpc::ClientContext context;
  v1::DownloadResultsRequest request;
  request.set_job_id(job_id);
  auto reader = impl_->stub->DownloadResults(&context, request);
  v1::DownloadResultsResponse response;
  while (reader->Read(&response)) {
    const absl::Status status = on_piece(response);
    if (!status.ok()) {
      context.TryCancel();
      reader->Finish().error_code();
      return status;
    }
  }
  return impl_->Convert(reader->Finish());
}

absl::Status CoordinatorClient::Generate(const v1::GenerateRequest& request, CallCanceller* canceller,
                                         absl::FunctionRef<void(const v1::GenerateResponse&)> on_text) {
  return impl_->ReadAll<v1::GenerateResponse>(
      canceller, [&](grpc::ClientContext* context) { return impl_->stub->Generate(context, request); }, on_text);
}

absl::Status CoordinatorClient::ExportModel(const v1::ExportModelRequest& request, CallCanceller* canceller,
                                            absl::FunctionRef<void(const v1::ExportModelResponse&)> on_progress) {
  return impl_->ReadAll<v1::ExportModelResponse>(
      canceller, [&](grpc::ClientContext* context) { return impl_->stub->ExportModel(context, request); }, on_progress);
}

absl::StatusOr<v1::TokenizeResponse> CoordinatorClient::Tokenize(const v1::TokenizeRequest& request) {
  return impl_->Unary(&v1::Coordinator::Stub::Tokenize, request);
}

absl::StatusOr<v1::DescribeDatasetResponse> CoordinatorClient::DescribeDataset(
    const v1::DescribeDatasetRequest& request, CallCanceller* canceller) {
  grpc::ClientContext context;
  if (canceller != nullptr) canceller->SetCallback([&context] { context.TryCancel(); });
  v1::DescribeDatasetResponse response;
  const grpc::Status status = impl_->stub->DescribeDataset(&context, request, &response);
  if (canceller != nullptr) {
    canceller->SetCallback(nullptr);
    if (canceller->cancelled()) return absl::CancelledError("stopped");
  }
  QST_RETURN_IF_ERROR(impl_->Convert(status));
  return response;
}

std::string RandomRequestId() {
  std::random_device device;
  std::string id;
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&id, "%08x", device());
  return id;
}

}  // namespace qst
