// The worker's side of WorkerControl.Session: opened, kept, and opened again for as long as the process lives.
#ifndef QST_WORKER_WORKER_SESSION_H_
#define QST_WORKER_WORKER_SESSION_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.grpc.pb.h"
#include "worker/worker_reports.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace qst {

struct WorkerSessionOptions {
  // For messages.
  std::string coordinator;
  // How long the first session may take to come about; later ones are tried for ever.
  absl::Duration first_connect_timeout = absl::Seconds(30);
  absl::Duration min_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(1);
};

// What the session asks the worker and tells it. Called from the session's threads; must not block for long.
struct WorkerSessionCallbacks {
  std::function<v1::Hello()> hello;
  std::function<v1::Heartbeat()> heartbeat;
  // All but Welcome, JobAck and Shutdown.
  std::function<void(const v1::WorkerCommand&)> command;
};

//   connecting ──Welcome──▶ open ──stream breaks──▶ waiting (backoff) ──▶ connecting
//        │                   │ Shutdown command, Stop()
//        └─ Stop() ──────────┴──▶ over
class WorkerSession {
 public:
  // `reports` must outlive the session.
  WorkerSession(std::shared_ptr<grpc::Channel> channel, WorkerReports* reports, WorkerSessionCallbacks callbacks,
                WorkerSessionOptions options);

  // Blocks until Stop or a Shutdown command (OK). kUnavailable: no coordinator answered in the time allowed for the
  // first session. Other codes: the coordinator refuses this worker; the message says why.
  absl::Status Run();

  // Ends Run, from any thread.
  void Stop();

 private:
  // Waits until the channel is connected; false when `deadline` has passed or Stop was called.
  bool WaitForConnection(absl::Time deadline);
  // One session, from connection to its end. `*was_welcome`: the coordinator took this worker in.
  absl::Status RunOnce(bool* was_welcome);
  void ReadCommands(grpc::ClientReaderWriterInterface<v1::WorkerReport, v1::WorkerCommand>* stream, bool* was_welcome);
  bool is_stopping() const;

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::WorkerControl::Stub> stub_;
  WorkerReports* const reports_;
  const WorkerSessionCallbacks callbacks_;
  const WorkerSessionOptions options_;

  mutable absl::Mutex mutex_;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::atomic<std::int64_t> heartbeat_ms_{1000};
};

}  // namespace qst

#endif  // QST_WORKER_WORKER_SESSION_H_
