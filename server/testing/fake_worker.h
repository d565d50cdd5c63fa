// A worker for tests of the coordinator: speaks the real Session over gRPC and does what the test says.
#ifndef QST_SERVER_TESTING_FAKE_WORKER_H_
#define QST_SERVER_TESTING_FAKE_WORKER_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/qst/v1/control.grpc.pb.h"

namespace qst {

class FakeWorker {
 public:
  struct Options {
    std::string id;
    std::string incarnation = "first";
    std::string store_path;
    std::vector<v1::HostedPart> hosted;
    std::string device = "cpu";
    std::string device_name;
    std::uint64_t device_memory_bytes = 0;
  };

  // Connects and says hello.
  FakeWorker(const std::string& address, const Options& options);
  // The session breaks, as when the process is killed.
  ~FakeWorker();

  // The next command of this kind; those of other kinds stay for later calls. Nothing if none comes (some seconds) or
  // the session ends before.
  std::optional<v1::WorkerCommand> Await(v1::WorkerCommand::KindCase kind);
  // As many HostPart commands as a placement has for this worker.
  std::vector<v1::HostPart> AwaitParts(int count);

  void Report(const v1::WorkerReport& report);
  void ReportHeartbeat();
  void ReportPart(const v1::HostPart& host, v1::PartState state, absl::StatusCode code = absl::StatusCode::kOk,
                  const std::string& message = "");
  void ReportJob(const v1::HostPart& side, std::uint64_t sequence, const v1::JobReport& what);
  void ReportState(const v1::HostPart& side, std::uint64_t sequence, v1::JobState state,
                   const std::string& message = "");
  void ReportMetrics(const v1::HostPart& side, std::uint64_t sequence, const std::string& json);
  void ReportModel(const v1::Model& model);

  // Breaks the session; returns how the coordinator ended it, or CANCELLED if it did not.
  absl::Status Disconnect();
  // Waits for the coordinator to end the session.
  absl::Status AwaitEnd();

  v1::WorkerControl::Stub* stub() { return stub_.get(); }
  const std::string& id() const { return options_.id; }

  static v1::HostedPart PartOf(const v1::HostPart& host);

 private:
  void Read();

  const Options options_;
  std::unique_ptr<v1::WorkerControl::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerReport, v1::WorkerCommand>> stream_;
  absl::Mutex mutex_;
  std::deque<v1::WorkerCommand> commands_ ABSL_GUARDED_BY(mutex_);
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> status_;
  std::thread reader_;
};

}  // namespace qst

#endif  // QST_SERVER_TESTING_FAKE_WORKER_H_
