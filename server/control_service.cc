#include "server/control_service.h"

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/support/grpc_status.h"

namespace qst {
namespace {

using SessionStream = grpc::ServerBidiReactor<v1::WorkerReport, v1::WorkerCommand>;

// The registry's hold on a session; may outlive it. Thread-safe. As in StreamHandle, operations begin under the lock
// that the reactor takes before it goes.
class SessionLink : public WorkerLink {
 public:
  explicit SessionLink(SessionStream* stream) : stream_(stream) {}

  void Send(const v1::WorkerCommand& command) override {
    absl::MutexLock lock(&mutex_);
    if (stream_ == nullptr || end_.has_value()) return;
    queue_.push_back(command);
    Pump();
  }
  // What was sent before goes out first.
  void Close(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    end_ = status;
    Pump();
  }
  void OnWriteDone(bool ok) {
    absl::MutexLock lock(&mutex_);
    is_writing_ = false;
    if (!ok) queue_.clear();
    Pump();
  }
  // The worker ended the stream or is gone: nothing can be sent any more.
  void OnReadsEnded() {
    absl::MutexLock lock(&mutex_);
    queue_.clear();
    if (!end_.has_value()) end_ = absl::OkStatus();
    Pump();
  }
  void OnDone() {
    absl::MutexLock lock(&mutex_);
    stream_ = nullptr;
  }

 private:
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (stream_ == nullptr || is_writing_ || is_finished_) return;
    if (!queue_.empty()) {
      current_ = std::move(queue_.front());
      queue_.pop_front();
      is_writing_ = true;
      stream_->StartWrite(&current_);
    } else if (end_.has_value()) {
      is_finished_ = true;
      stream_->Finish(ToGrpcStatus(*end_));
    }
  }

  absl::Mutex mutex_;
  SessionStream* stream_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::WorkerCommand> queue_ ABSL_GUARDED_BY(mutex_);
  v1::WorkerCommand current_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
};

class SessionReactor : public SessionStream {
 public:
  SessionReactor(ControlLoop* loop, Coordinator* coordinator)
      : loop_(loop), coordinator_(coordinator), link_(std::make_shared<SessionLink>(this)) {
    StartRead(&report_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      loop_->Post([coordinator = coordinator_, worker_id = worker_id_, link = link_] {
        coordinator->OnSessionEnded(worker_id, link.get());
      });
      link_->OnReadsEnded();
      return;
    }
    if (worker_id_.empty()) {
      worker_id_ = report_.hello().worker_id();
      if (!report_.has_hello() || worker_id_.empty()) {
        link_->Close(absl::InvalidArgumentError("a session must begin with hello, which names the worker"));
      } else {
        loop_->Post([coordinator = coordinator_, hello = report_.hello(), link = link_] {
          const absl::Status status = coordinator->OnHello(hello, link);
          if (!status.ok()) link->Close(status);
        });
      }
    } else {
      loop_->Post([coordinator = coordinator_, worker_id = worker_id_, link = link_, report = std::move(report_)] {
        coordinator->OnReport(worker_id, link.get(), report);
      });
      report_ = v1::WorkerReport();
    }
    StartRead(&report_);
  }
  void OnWriteDone(bool ok) override { link_->OnWriteDone(ok); }
  // Reads end with the call.
  void OnCancel() override {}
  void OnDone() override {
    link_->OnDone();
    delete this;
  }

 private:
  ControlLoop* const loop_;
  Coordinator* const coordinator_;
  const std::shared_ptr<SessionLink> link_;
  v1::WorkerReport report_;
  std::string worker_id_;
};

// A GetKey call that may wait for its key. Deletes itself.
class GetKeyReactor : public grpc::ServerUnaryReactor {
 public:
  // What the control loop and gRPC both hold. `reactor` is null once the call is over.
  struct Shared {
    absl::Mutex mutex;
    GetKeyReactor* reactor ABSL_GUARDED_BY(mutex) = nullptr;
    bool is_finished ABSL_GUARDED_BY(mutex) = false;
    // On the control loop only.
    std::uint64_t waiter = 0;
    bool is_over = false;
  };

  GetKeyReactor(ControlLoop* loop, Coordinator* coordinator, const v1::GetKeyRequest* request,
                v1::GetKeyResponse* response)
      : loop_(loop), coordinator_(coordinator), shared_(std::make_shared<Shared>()) {
    {
      absl::MutexLock lock(&shared_->mutex);
      shared_->reactor = this;
    }
    const bool is_posted =
        loop->Post([coordinator, shared = shared_, response, plan_id = request->plan_id(), key = request->key()] {
          if (shared->is_over) return;
          shared->waiter =
              coordinator->rendezvous().Get(plan_id, key, [shared, response](absl::StatusOr<std::string> value) {
                shared->waiter = 0;
                Answer(shared.get(), value.status(), response, value.ok() ? *std::move(value) : "");
              });
        });
    if (!is_posted) Answer(shared_.get(), absl::UnavailableError("the coordinator has stopped"), response, "");
  }

  void OnCancel() override { Answer(shared_.get(), absl::CancelledError("the caller waits no longer"), nullptr, ""); }
  void OnDone() override {
    {
      absl::MutexLock lock(&shared_->mutex);
      shared_->reactor = nullptr;
    }
    loop_->Post([coordinator = coordinator_, shared = shared_] {
      shared->is_over = true;
      if (shared->waiter != 0) coordinator->rendezvous().Forget(shared->waiter);
    });
    delete this;
  }

 private:
  static void Answer(Shared* shared, const absl::Status& status, v1::GetKeyResponse* response, std::string value) {
    absl::MutexLock lock(&shared->mutex);
    if (shared->reactor == nullptr || shared->is_finished) return;
    shared->is_finished = true;
    if (response != nullptr) response->set_value(std::move(value));
    shared->reactor->Finish(ToGrpcStatus(status));
  }

  ControlLoop* const loop_;
  Coordinator* const coordinator_;
  const std::shared_ptr<Shared> shared_;
};

}  // namespace

grpc::ServerBidiReactor<v1::WorkerReport, v1::WorkerCommand>* ControlService::Session(
    grpc::CallbackServerContext* /*context*/) {
  return new SessionReactor(loop_, coordinator_);
}

grpc::ServerUnaryReactor* ControlService::SetKey(grpc::CallbackServerContext* context, const v1::SetKeyRequest* request,
                                                 v1::SetKeyResponse* /*response*/) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool is_posted = loop_->Post([this, reactor, request] {
    reactor->Finish(ToGrpcStatus(coordinator_->rendezvous().Set(request->plan_id(), request->key(), request->value())));
  });
  if (!is_posted) reactor->Finish(ToGrpcStatus(absl::UnavailableError("the coordinator has stopped")));
  return reactor;
}

grpc::ServerUnaryReactor* ControlService::GetKey(grpc::CallbackServerContext* /*context*/,
                                                 const v1::GetKeyRequest* request, v1::GetKeyResponse* response) {
  return new GetKeyReactor(loop_, coordinator_, request, response);
}

}  // namespace qst
