// A whole coordinator in process, with a clock that tests move, for tests that talk to it over gRPC.
#ifndef QST_SERVER_TESTING_SERVER_FIXTURE_H_
#define QST_SERVER_TESTING_SERVER_FIXTURE_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "proto/qst/v1/coordinator.grpc.pb.h"
#include "server/clock.h"
#include "server/server.h"
#include "server/testing/fake_worker.h"

namespace qst {

class ServerFixture : public testing::Test {
 protected:
  ServerFixture();
  ~ServerFixture() override;

  void StartServer();
  // As kill -9: no drain, nothing said to anyone.
  void CrashServer();

  // Time passes for the coordinator, in steps that look like a process that runs.
  void Advance(absl::Duration by);

  std::unique_ptr<FakeWorker> NewWorker(const std::string& id, std::vector<v1::HostedPart> hosted = {},
                                        const std::string& incarnation = "first");
  // A worker with a GPU of its own.
  std::unique_ptr<FakeWorker> NewCudaWorker(const std::string& id, const std::string& device,
                                            std::uint64_t device_memory_bytes);
  // Waits until the coordinator lists the worker in this state.
  void AwaitWorker(const std::string& id, v1::WorkerState state);

  // Imports a model of 6 layers through a worker that comes and goes.
  void MakeModel(const std::string& name);
  // Answers one import command as a good worker does.
  static void CompleteImport(FakeWorker* worker, const v1::ImportCommand& import);
  absl::StatusOr<v1::UploadDatasetResponse> Upload(const v1::UploadDatasetHeader& header,
                                                   const std::vector<std::string>& pieces);
  // Uploads some content under this name.
  void MakeDataset(const std::string& name);

  // A job on model "m" and data set "d".
  static v1::JobSpec Spec(std::uint32_t stages, std::uint32_t workers);
  // Model "m", data set "d", and a job that is accepted.
  std::string SubmitJob(std::uint32_t stages, std::uint32_t workers);
  absl::StatusOr<v1::Job> Submit(const v1::JobSpec& spec, const std::string& request_id = "");
  v1::Job GetJob(const std::string& id);
  absl::StatusOr<v1::Job> Cancel(const std::string& id);
  // Follows the job until an event satisfies `wanted`; fails the test if the stream ends or stalls before.
  void AwaitEvent(const std::string& id, const std::function<bool(const v1::JobEvent&)>& wanted);
  void AwaitState(const std::string& id, v1::JobState state);
  void AwaitMessage(const std::string& id, const std::string& part_of_message);
  // All events of a job that is over.
  std::vector<v1::JobEvent> AllEvents(const std::string& id);
  // An import's outcome.
  v1::Model AwaitModel(const std::string& name);

  v1::Coordinator::Stub* api() { return stub_.get(); }
  const std::string& store() const { return store_; }
  const std::string& address() const { return server_->address(); }
  // A context with a deadline, so that no test hangs.
  static std::unique_ptr<grpc::ClientContext> Context();

  FakeClock clock_;
  std::unique_ptr<Server> server_;

 private:
  std::string store_;
  std::unique_ptr<v1::Coordinator::Stub> stub_;
  int next_dataset_ = 0;
};

}  // namespace qst

#endif  // QST_SERVER_TESTING_SERVER_FIXTURE_H_
