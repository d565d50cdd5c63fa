// Calls of the public API that a worker answers while the client waits: tokens, descriptions of data sets, exports.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/support/grpc_status.h"
#include "server/api_deadline.h"
#include "server/api_service.h"
#include "server/stream_reactor.h"

namespace qst {
namespace {

absl::Status Stopped() { return absl::UnavailableError("the coordinator has stopped"); }

using StartTask =
    std::function<absl::StatusOr<std::string>(Coordinator* coordinator, WorkerTaskManager::Callbacks callbacks)>;

// A unary call that waits for a task; the task ends when the caller goes. Deletes itself.
class TaskCallReactor : public grpc::ServerUnaryReactor {
 public:
  // What the control loop and gRPC both hold. `reactor` is null once the call is over.
  struct Shared {
    absl::Mutex mutex;
    TaskCallReactor* reactor ABSL_GUARDED_BY(mutex) = nullptr;
    bool is_finished ABSL_GUARDED_BY(mutex) = false;
    // On the control loop only.
    std::string task_id;
    bool is_over = false;
  };
  using TakeOutcome = std::function<void(v1::TaskReport report)>;

  TaskCallReactor(ControlLoop* loop, Coordinator* coordinator, StartTask start, TakeOutcome take)
      : loop_(loop), coordinator_(coordinator), shared_(std::make_shared<Shared>()) {
    {
      absl::MutexLock lock(&shared_->mutex);
      shared_->reactor = this;
    }
    const bool is_posted =
        loop->Post([coordinator, shared = shared_, start = std::move(start), take = std::move(take)] {
          if (shared->is_over) return;
          WorkerTaskManager::Callbacks callbacks;
          callbacks.on_done = [shared, take](absl::StatusOr<v1::TaskReport> outcome) {
            shared->task_id.clear();
            Answer(shared.get(), outcome.status(), [&] { take(*std::move(outcome)); });
          };
          absl::Status status = coordinator->CheckAccepting();
          if (status.ok()) {
            absl::StatusOr<std::string> id = start(coordinator, std::move(callbacks));
            if (id.ok()) shared->task_id = *std::move(id);
            status = id.status();
          }
          if (!status.ok()) Answer(shared.get(), status, nullptr);
        });
    if (!is_posted) Answer(shared_.get(), Stopped(), nullptr);
  }

  void OnCancel() override { Answer(shared_.get(), absl::CancelledError("the caller waits no longer"), nullptr); }
  void OnDone() override {
    {
      absl::MutexLock lock(&shared_->mutex);
      shared_->reactor = nullptr;
    }
    loop_->Post([coordinator = coordinator_, shared = shared_] {
      shared->is_over = true;
      if (!shared->task_id.empty()) coordinator->tasks().Cancel(shared->task_id);
    });
    delete this;
  }

 private:
  // `take` fills the response, which is there only as long as the call is not over.
  static void Answer(Shared* shared, const absl::Status& status, const std::function<void()>& take) {
    absl::MutexLock lock(&shared->mutex);
    if (shared->reactor == nullptr || shared->is_finished) return;
    shared->is_finished = true;
    if (status.ok()) take();
    shared->reactor->Finish(ToGrpcStatus(status));
  }

  ControlLoop* const loop_;
  Coordinator* const coordinator_;
  const std::shared_ptr<Shared> shared_;
};

}  // namespace

grpc::ServerUnaryReactor* ApiService::Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                               v1::TokenizeResponse* response) {
  const absl::Time deadline = DeadlineOf(*context, loop_->Now());
  return new TaskCallReactor(
      loop_, coordinator_,
      [deadline, request = *request](Coordinator* coordinator, WorkerTaskManager::Callbacks callbacks) {
        return coordinator->tasks().Tokenize(request, deadline, std::move(callbacks));
      },
      [response](v1::TaskReport report) { *response = std::move(*report.mutable_tokenize()); });
}

grpc::ServerUnaryReactor* ApiService::DescribeDataset(grpc::CallbackServerContext* context,
                                                      const v1::DescribeDatasetRequest* request,
                                                      v1::DescribeDatasetResponse* response) {
  const absl::Time deadline = DeadlineOf(*context, loop_->Now());
  return new TaskCallReactor(
      loop_, coordinator_,
      [deadline, request = *request](Coordinator* coordinator, WorkerTaskManager::Callbacks callbacks) {
        return coordinator->tasks().DescribeDataset(request, deadline, std::move(callbacks));
      },
      [this, response, name = request->dataset()](v1::TaskReport report) {
        *response = std::move(*report.mutable_describe_dataset());
        // On the control loop: what a worker does not know of it.
        const absl::StatusOr<v1::Dataset> dataset = coordinator_->datasets().Resolve(name, "dataset");
        if (dataset.ok()) *response->mutable_dataset() = *dataset;
      });
}

grpc::ServerWriteReactor<v1::ExportModelResponse>* ApiService::ExportModel(grpc::CallbackServerContext* context,
                                                                           const v1::ExportModelRequest* request) {
  // Lives on the control loop.
  struct State {
    std::string task_id;
    bool is_done = false;
  };
  auto* reactor = new StreamReactor<v1::ExportModelResponse>();
  auto state = std::make_shared<State>();
  const auto handle = reactor->handle();
  reactor->Begin(nullptr, [this, state] {
    loop_->Post([this, state] {
      state->is_done = true;
      if (!state->task_id.empty()) coordinator_->tasks().Cancel(state->task_id);
    });
  });
  const absl::Time deadline = DeadlineOf(*context, loop_->Now());
  const bool is_posted = loop_->Post([this, state, handle, deadline, request = *request] {
    if (state->is_done) return;
    WorkerTaskManager::Callbacks callbacks;
    callbacks.on_progress = [handle](const v1::TaskProgress& progress) {
      v1::ExportModelResponse response;
      response.set_bytes_done(progress.bytes_done());
      response.set_bytes_total(progress.bytes_total());
      response.set_status_message(progress.status_message());
      handle->Deliver({response});
    };
    callbacks.on_done = [handle, state](absl::StatusOr<v1::TaskReport> outcome) {
      state->task_id.clear();
      if (!outcome.ok()) return handle->Deliver({}, outcome.status());
      handle->Deliver({outcome->export_model()}, absl::OkStatus());
    };
    absl::Status status = coordinator_->CheckAccepting();
    if (status.ok()) {
      absl::StatusOr<std::string> id = coordinator_->tasks().ExportModel(request, deadline, std::move(callbacks));
      if (id.ok()) state->task_id = *std::move(id);
      status = id.status();
    }
    if (!status.ok()) handle->Deliver({}, status);
  });
  if (!is_posted) handle->Deliver({}, Stopped());
  return reactor;
}

}  // namespace qst
