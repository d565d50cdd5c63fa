// A server stream that the domain fills from another thread.
#ifndef QST_SERVER_STREAM_REACTOR_H_
#define QST_SERVER_STREAM_REACTOR_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/support/grpc_status.h"

namespace qst {

// The domain's hold on a stream; outlives the stream if it must. Thread-safe.
template <typename Response>
class StreamHandle {
 public:
  explicit StreamHandle(grpc::ServerWriteReactor<Response>* reactor) : reactor_(reactor) {}

  // Messages to send next and, if given, the status that ends the stream after them. Dropped once it has ended.
  void Deliver(std::vector<Response> messages, std::optional<absl::Status> end = std::nullopt) {
    absl::MutexLock lock(&mutex_);
    if (reactor_ == nullptr || end_.has_value()) return;
    for (Response& message : messages) queue_.push_back(std::move(message));
    end_ = std::move(end);
    Pump();
  }

  // ---- For the reactor.
  // False: nothing is left to send and the stream goes on.
  bool OnWriteDone(bool ok) {
    absl::MutexLock lock(&mutex_);
    is_writing_ = false;
    if (!ok) Abandon();
    Pump();
    return is_writing_ || end_.has_value();
  }
  void OnCancel() {
    absl::MutexLock lock(&mutex_);
    Abandon();
    Pump();
  }
  void OnDone() {
    absl::MutexLock lock(&mutex_);
    reactor_ = nullptr;
  }

 private:
  void Abandon() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    queue_.clear();
    end_ = absl::CancelledError("cancelled by the client");
  }
  // The lock is held while an operation begins, and OnDone takes it before the reactor goes: no operation can meet a
  // reactor that is gone. Reactions never run inside an operation, so they do not meet the lock.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (reactor_ == nullptr || is_writing_ || is_finished_) return;
    if (!queue_.empty()) {
      current_ = std::move(queue_.front());
      queue_.pop_front();
      is_writing_ = true;
      reactor_->StartWrite(&current_);
    } else if (end_.has_value()) {
      is_finished_ = true;
      reactor_->Finish(ToGrpcStatus(*end_));
    }
  }

  absl::Mutex mutex_;
  grpc::ServerWriteReactor<Response>* reactor_ ABSL_GUARDED_BY(mutex_);
  std::deque<Response> queue_ ABSL_GUARDED_BY(mutex_);
  Response current_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
};

// Calls `fetch` whenever all that was delivered has been sent, the first time from Begin, and `on_done` at the end.
// Deletes itself.
template <typename Response>
class StreamReactor : public grpc::ServerWriteReactor<Response> {
 public:
  using Handle = std::shared_ptr<StreamHandle<Response>>;

  StreamReactor() : handle_(std::make_shared<StreamHandle<Response>>(this)) {}

  const Handle& handle() const { return handle_; }
  void Begin(std::function<void()> fetch, std::function<void()> on_done) {
    fetch_ = std::move(fetch);
    on_done_ = std::move(on_done);
    if (fetch_) fetch_();
  }

  void OnWriteDone(bool ok) override {
    if (!handle_->OnWriteDone(ok) && fetch_) fetch_();
  }
  void OnCancel() override { handle_->OnCancel(); }
  void OnDone() override {
    handle_->OnDone();
    if (on_done_) on_done_();
    delete this;
  }

 private:
  const Handle handle_;
  std::function<void()> fetch_;
  std::function<void()> on_done_;
};

}  // namespace qst

#endif  // QST_SERVER_STREAM_REACTOR_H_
