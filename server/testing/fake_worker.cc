#include "server/testing/fake_worker.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "proto/support/grpc_status.h"

namespace qst {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

}  // namespace

FakeWorker::FakeWorker(const std::string& address, const Options& options) : options_(options) {
  stub_ = v1::WorkerControl::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  context_.set_wait_for_ready(true);
  stream_ = stub_->Session(&context_);
  v1::WorkerReport report;
  v1::Hello* hello = report.mutable_hello();
  hello->set_worker_id(options.id);
  hello->set_incarnation(options.incarnation);
  hello->set_device(options.device);
  hello->set_device_name(options.device_name);
  hello->set_device_memory_bytes(options.device_memory_bytes);
  hello->set_host("testhost");
  hello->set_pid(123);
  hello->set_num_threads(1);
  hello->set_store_path(options.store_path);
  for (const v1::HostedPart& part : options.hosted) *hello->add_hosted() = part;
  Report(report);
  reader_ = std::thread([this] { Read(); });
}

FakeWorker::~FakeWorker() { Disconnect().IgnoreError(); }

void FakeWorker::Read() {
  v1::WorkerCommand command;
  while (stream_->Read(&command)) {
    absl::MutexLock lock(&mutex_);
    commands_.push_back(command);
  }
  absl::MutexLock lock(&mutex_);
  has_ended_ = true;
}

std::optional<v1::WorkerCommand> FakeWorker::Await(v1::WorkerCommand::KindCase kind) {
  const auto find = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::find_if(commands_.begin(), commands_.end(),
                        [&](const v1::WorkerCommand& command) { return command.kind_case() == kind; });
  };
  const auto is_there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return has_ended_ || find() != commands_.end(); };
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&is_there), kPatience);
  const auto found = find();
  if (found == commands_.end()) return std::nullopt;
  v1::WorkerCommand command = std::move(*found);
  commands_.erase(found);
  return command;
}

std::vector<v1::HostPart> FakeWorker::AwaitParts(int count) {
  std::vector<v1::HostPart> parts;
  for (int i = 0; i < count; ++i) {
    const std::optional<v1::WorkerCommand> command = Await(v1::WorkerCommand::kHost);
    if (!command.has_value()) break;
    parts.push_back(command->host());
  }
  return parts;
}

void FakeWorker::Report(const v1::WorkerReport& report) { stream_->Write(report); }

void FakeWorker::ReportHeartbeat() {
  v1::WorkerReport report;
  report.mutable_heartbeat()->set_resident_bytes(1 << 20);
  Report(report);
}

v1::HostedPart FakeWorker::PartOf(const v1::HostPart& host) {
  v1::HostedPart part;
  part.set_job_id(host.plan().job_id());
  part.set_plan_id(host.plan().plan_id());
  part.set_is_side(host.is_side());
  part.set_stage(host.stage());
  return part;
}

void FakeWorker::ReportPart(const v1::HostPart& host, v1::PartState state, absl::StatusCode code,
                            const std::string& message) {
  v1::WorkerReport report;
  *report.mutable_part()->mutable_part() = PartOf(host);
  report.mutable_part()->set_state(state);
  report.mutable_part()->set_code(static_cast<int>(code));
  report.mutable_part()->set_message(message);
  Report(report);
}

void FakeWorker::ReportJob(const v1::HostPart& side, std::uint64_t sequence, const v1::JobReport& what) {
  v1::WorkerReport report;
  *report.mutable_job() = what;
  report.mutable_job()->set_job_id(side.plan().job_id());
  report.mutable_job()->set_plan_id(side.plan().plan_id());
  report.mutable_job()->set_report_sequence(sequence);
  Report(report);
}

void FakeWorker::ReportState(const v1::HostPart& side, std::uint64_t sequence, v1::JobState state,
                             const std::string& message) {
  v1::JobReport report;
  report.mutable_state()->set_state(state);
  report.mutable_state()->set_message(message);
  ReportJob(side, sequence, report);
}

void FakeWorker::ReportMetrics(const v1::HostPart& side, std::uint64_t sequence, const std::string& json) {
  v1::JobReport report;
  report.set_metrics_json(json);
  ReportJob(side, sequence, report);
}

void FakeWorker::ReportModel(const v1::Model& model) {
  v1::WorkerReport report;
  *report.mutable_model()->mutable_model() = model;
  Report(report);
}

absl::Status FakeWorker::Disconnect() {
  if (!status_.has_value()) context_.TryCancel();
  return AwaitEnd();
}

absl::Status FakeWorker::AwaitEnd() {
  if (reader_.joinable()) reader_.join();
  if (!status_.has_value()) status_ = FromGrpcStatus(stream_->Finish());
  return *status_;
}

}  // namespace qst
