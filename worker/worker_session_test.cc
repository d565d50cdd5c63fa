#include "worker/worker_session.h"

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/worker_rendezvous.h"

namespace qst {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(30);

// A coordinator of which the test decides every word.
class FakeCoordinator : public v1::WorkerControl::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::WorkerCommand, v1::WorkerReport>;

  grpc::Status Session(grpc::ServerContext* context, Stream* stream) override {
    v1::WorkerReport report;
    if (!stream->Read(&report)) return grpc::Status::CANCELLED;
    {
      absl::MutexLock lock(&mutex_);
      hellos_.push_back(report.hello());
      changed_.SignalAll();
      if (!refusal_.ok()) return refusal_;
    }
    v1::WorkerCommand welcome;
    welcome.mutable_welcome()->set_heartbeat_ms(50);
    stream->Write(welcome);
    std::thread writer([this, stream, context] { WriteCommands(stream, context); });
    while (stream->Read(&report)) {
      absl::MutexLock lock(&mutex_);
      if (report.has_heartbeat()) {
        ++num_heartbeats_;
      } else {
        reports_.push_back(report);
      }
      changed_.SignalAll();
    }
    {
      absl::MutexLock lock(&mutex_);
      ++num_ended_;
      changed_.SignalAll();
    }
    writer.join();
    return grpc::Status::OK;
  }

  grpc::Status SetKey(grpc::ServerContext*, const v1::SetKeyRequest* request, v1::SetKeyResponse*) override {
    absl::MutexLock lock(&mutex_);
    keys_[request->plan_id() + "|" + request->key()] = request->value();
    changed_.SignalAll();
    return grpc::Status::OK;
  }

  grpc::Status GetKey(grpc::ServerContext* context, const v1::GetKeyRequest* request,
                      v1::GetKeyResponse* response) override {
    absl::MutexLock lock(&mutex_);
    if (request->plan_id() == "over") return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "no such plan");
    const std::string key = request->plan_id() + "|" + request->key();
    while (keys_.count(key) == 0 && !context->IsCancelled()) changed_.WaitWithTimeout(&mutex_, absl::Milliseconds(10));
    if (keys_.count(key) == 0) return grpc::Status::CANCELLED;
    response->set_value(keys_[key]);
    return grpc::Status::OK;
  }

  void Send(const v1::WorkerCommand& command) {
    absl::MutexLock lock(&mutex_);
    commands_.push_back(command);
    changed_.SignalAll();
  }
  void Refuse(const grpc::Status& status) {
    absl::MutexLock lock(&mutex_);
    refusal_ = status;
  }

  // Reports as they came, once there are so many.
  std::vector<v1::WorkerReport> WaitForReports(std::size_t count) {
    absl::MutexLock lock(&mutex_);
    WaitUntil([&] { return reports_.size() >= count; });
    return reports_;
  }
  std::vector<v1::Hello> WaitForHellos(std::size_t count) {
    absl::MutexLock lock(&mutex_);
    WaitUntil([&] { return hellos_.size() >= count; });
    return hellos_;
  }
  void WaitForHeartbeats(int count) {
    absl::MutexLock lock(&mutex_);
    WaitUntil([&] { return num_heartbeats_ >= count; });
  }
  void ClearReports() {
    absl::MutexLock lock(&mutex_);
    reports_.clear();
  }

 private:
  void WriteCommands(Stream* stream, grpc::ServerContext* context) {
    for (;;) {
      v1::WorkerCommand command;
      {
        absl::MutexLock lock(&mutex_);
        const int ended = num_ended_;
        while (commands_.empty() && num_ended_ == ended && !context->IsCancelled()) {
          changed_.WaitWithTimeout(&mutex_, absl::Milliseconds(10));
        }
        if (commands_.empty()) return;
        command = commands_.front();
        commands_.pop_front();
      }
      stream->Write(command);
    }
  }
  template <typename Condition>
  void WaitUntil(const Condition& condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Time deadline = absl::Now() + kLong;
    while (!condition()) {
      if (changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline) {
        ADD_FAILURE() << "waited in vain";
        return;
      }
    }
  }

  absl::Mutex mutex_;
  absl::CondVar changed_;
  grpc::Status refusal_;
  int num_heartbeats_ = 0;
  int num_ended_ = 0;
  std::vector<v1::Hello> hellos_;
  std::vector<v1::WorkerReport> reports_;
  std::deque<v1::WorkerCommand> commands_;
  std::map<std::string, std::string> keys_;
};

class WorkerSessionTest : public testing::Test {
 protected:
  WorkerSessionTest() { StartServer(0); }
  ~WorkerSessionTest() override {
    if (session_ != nullptr) session_->Stop();
    if (thread_.joinable()) thread_.join();
    StopServer();
  }

  void StartServer(int port) {
    service_ = std::make_unique<FakeCoordinator>();
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void StopServer() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }

  void StartSession() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
    // A channel of its own for each test: ports are used again.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel =
        grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port_), grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::WorkerControl::NewStub(channel);
    WorkerSessionCallbacks callbacks;
    callbacks.hello = [this] {
      v1::Hello hello;
      hello.set_worker_id("w0");
      absl::MutexLock lock(&mutex_);
      for (const std::string& plan : hosted_) hello.add_hosted()->set_plan_id(plan);
      return hello;
    };
    callbacks.heartbeat = [] { return v1::Heartbeat(); };
    callbacks.command = [this](const v1::WorkerCommand& command) {
      absl::MutexLock lock(&mutex_);
      commands_.push_back(command);
      changed_.SignalAll();
    };
    options_.coordinator = "test";
    session_ = std::make_unique<WorkerSession>(channel, &reports_, callbacks, options_);
    thread_ = std::thread([this] { result_ = session_->Run(); });
  }
  void Join() { thread_.join(); }

  int port_ = 0;
  std::unique_ptr<FakeCoordinator> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::WorkerControl::Stub> stub_;
  WorkerReports reports_;
  WorkerSessionOptions options_;
  std::unique_ptr<WorkerSession> session_;
  std::thread thread_;
  absl::Status result_ = absl::UnknownError("still running");
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::vector<std::string> hosted_;
  std::vector<v1::WorkerCommand> commands_;
};

v1::JobReport Message(const std::string& text) {
  v1::JobReport report;
  report.set_plan_id("j/1");
  report.set_message(text);
  return report;
}

TEST_F(WorkerSessionTest, ReportsGoUpCommandsComeDownHeartbeatsKeepTheLease) {
  StartSession();
  reports_.AddJob(Message("hello"));
  const auto reports = service_->WaitForReports(1);
  ASSERT_FALSE(reports.empty());
  EXPECT_EQ(reports[0].job().message(), "hello");
  service_->WaitForHeartbeats(3);
  v1::WorkerCommand command;
  command.mutable_release()->set_plan_id("j/1");
  service_->Send(command);
  absl::MutexLock lock(&mutex_);
  const absl::Time deadline = absl::Now() + kLong;
  while (commands_.empty() && absl::Now() < deadline) changed_.WaitWithDeadline(&mutex_, deadline);
  ASSERT_EQ(commands_.size(), 1u);
  EXPECT_EQ(commands_[0].release().plan_id(), "j/1");
}

TEST_F(WorkerSessionTest, RestartedCoordinatorHearsWhatIsHostedAndAllThatWasNotAcknowledged) {
  StartSession();
  for (const char* text : {"1", "2", "3"}) reports_.AddJob(Message(text));
  service_->WaitForReports(3);
  v1::WorkerCommand ack;
  ack.mutable_job_ack()->set_plan_id("j/1");
  ack.mutable_job_ack()->set_report_sequence(1);
  service_->Send(ack);
  // Delivered once a command that follows it has arrived.
  v1::WorkerCommand marker;
  marker.mutable_cancel()->set_plan_id("marker");
  service_->Send(marker);
  {
    absl::MutexLock lock(&mutex_);
    const absl::Time deadline = absl::Now() + kLong;
    while (commands_.empty() && absl::Now() < deadline) changed_.WaitWithDeadline(&mutex_, deadline);
    ASSERT_FALSE(commands_.empty());
    hosted_ = {"j/1"};
  }
  StopServer();
  reports_.AddJob(Message("4"));
  StartServer(port_);
  const auto hellos = service_->WaitForHellos(1);
  ASSERT_FALSE(hellos.empty());
  ASSERT_EQ(hellos[0].hosted_size(), 1);
  EXPECT_EQ(hellos[0].hosted(0).plan_id(), "j/1");
  const auto reports = service_->WaitForReports(3);
  ASSERT_GE(reports.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(reports[i].job().report_sequence(), i + 2);
    EXPECT_EQ(reports[i].job().message(), absl::StrCat(i + 2));
  }
}

TEST_F(WorkerSessionTest, ShutdownCommandEndsTheSessionWithoutError) {
  StartSession();
  service_->WaitForHellos(1);
  v1::WorkerCommand command;
  command.mutable_shutdown();
  service_->Send(command);
  Join();
  QST_EXPECT_OK(result_);
}

TEST_F(WorkerSessionTest, StopEndsTheSessionWithoutError) {
  StartSession();
  service_->WaitForHellos(1);
  session_->Stop();
  Join();
  QST_EXPECT_OK(result_);
}

TEST_F(WorkerSessionTest, CoordinatorThatNeverAnswersIsReportedAfterTheTimeAllowed) {
  StopServer();
  options_.first_connect_timeout = absl::Milliseconds(300);
  StartSession();
  Join();
  EXPECT_THAT(result_, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no coordinator answers at test")));
}

TEST_F(WorkerSessionTest, RefusedWorkerEndsWithTheCoordinatorsReason) {
  service_->Refuse(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "this worker sees another store"));
  StartSession();
  Join();
  EXPECT_THAT(result_, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another store")));
}

TEST_F(WorkerSessionTest, KeysOfAPlanReachItsPeers) {
  StartSession();
  CoordinatorKeyValueStore store(stub_.get(), "j/1");
  std::thread setter([this] {
    CoordinatorKeyValueStore other(stub_.get(), "j/1");
    QST_EXPECT_OK(other.Set("address", std::string("a\0b", 3)));
  });
  const auto value = store.Get("address", kLong);
  setter.join();
  QST_ASSERT_OK(value);
  EXPECT_EQ(*value, std::string("a\0b", 3));
  EXPECT_THAT(store.Get("missing", absl::Milliseconds(100)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  CoordinatorKeyValueStore over(stub_.get(), "over");
  EXPECT_THAT(over.Get("address", kLong), StatusIs(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace qst
