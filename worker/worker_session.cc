#include "worker/worker_session.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/grpc_status.h"

namespace qst {
namespace {

// Trying again cannot help.
bool IsFinal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsUnimplemented(status) || absl::IsPermissionDenied(status) ||
         absl::IsUnauthenticated(status) || absl::IsFailedPrecondition(status);
}

}  // namespace

WorkerSession::WorkerSession(std::shared_ptr<grpc::Channel> channel, WorkerReports* reports,
                             WorkerSessionCallbacks callbacks, WorkerSessionOptions options)
    : channel_(std::move(channel)),
      stub_(v1::WorkerControl::NewStub(channel_)),
      reports_(reports),
      callbacks_(std::move(callbacks)),
      options_(std::move(options)) {}

bool WorkerSession::is_stopping() const {
  absl::MutexLock lock(&mutex_);
  return is_stopping_;
}

void WorkerSession::Stop() {
  absl::MutexLock lock(&mutex_);
  is_stopping_ = true;
  if (context_ != nullptr) context_->TryCancel();
  reports_->EndSession();
}

void WorkerSession::ReadCommands(grpc::ClientReaderWriterInterface<v1::WorkerReport, v1::WorkerCommand>* stream,
                                 bool* was_welcome) {
  v1::WorkerCommand command;
  while (stream->Read(&command)) {
    switch (command.kind_case()) {
      case v1::WorkerCommand::kWelcome:
        *was_welcome = true;
        if (command.welcome().heartbeat_ms() > 0) heartbeat_ms_ = command.welcome().heartbeat_ms();
        spdlog::info("connected to the coordinator at {}", options_.coordinator);
        break;
      case v1::WorkerCommand::kJobAck:
        reports_->AcknowledgeJob(command.job_ack().plan_id(), command.job_ack().report_sequence());
        break;
      case v1::WorkerCommand::kShutdown:
        spdlog::info("the coordinator asks this worker to leave");
        Stop();
        break;
      case v1::WorkerCommand::KIND_NOT_SET:
        spdlog::warn("the coordinator sent a command that this version does not know; ignored");
        break;
      default:
        callbacks_.command(command);
    }
  }
  // Wakes the writer.
  reports_->EndSession();
}

absl::Status WorkerSession::RunOnce(bool* was_welcome) {
  grpc::ClientContext context;
  {
    absl::MutexLock lock(&mutex_);
    if (is_stopping_) return absl::OkStatus();
    context_ = &context;
  }
  auto stream = stub_->Session(&context);
  v1::WorkerReport hello;
  *hello.mutable_hello() = callbacks_.hello();
  reports_->BeginSession();
  bool is_open = stream->Write(hello);
  std::thread reader([&] { ReadCommands(stream.get(), was_welcome); });

  absl::Time next_heartbeat = absl::Now();
  while (is_open && !is_stopping()) {
    v1::WorkerReport report;
    if (absl::Now() >= next_heartbeat) {
      *report.mutable_heartbeat() = callbacks_.heartbeat();
      next_heartbeat = absl::Now() + absl::Milliseconds(heartbeat_ms_.load());
    } else {
      std::optional<v1::WorkerReport> next = reports_->Take(next_heartbeat);
      if (!next.has_value()) {
        if (absl::Now() < next_heartbeat) break;  // the session is over
        continue;
      }
      report = *std::move(next);
    }
    is_open = stream->Write(report);
  }
  // Either the call has ended, or Stop cancelled it. Cancelling here would hide the reason of the end.
  reader.join();
  {
    absl::MutexLock lock(&mutex_);
    context_ = nullptr;
  }
  return FromGrpcStatus(stream->Finish());
}

bool WorkerSession::WaitForConnection(absl::Time deadline) {
  // In slices, to hear of Stop. Waiting here also drives the channel: gRPC connects while somebody polls, and a call
  // that fails at once does not.
  while (!is_stopping()) {
    const absl::Time slice = std::min(deadline, absl::Now() + absl::Milliseconds(100));
    if (channel_->WaitForConnected(absl::ToChronoTime(slice))) return true;
    if (absl::Now() >= deadline) return false;
  }
  return false;
}

absl::Status WorkerSession::Run() {
  const absl::Time first_deadline = absl::Now() + options_.first_connect_timeout;
  bool was_ever_welcome = false;
  absl::Duration backoff = options_.min_backoff;
  while (!is_stopping()) {
    if (!WaitForConnection(was_ever_welcome ? absl::InfiniteFuture() : first_deadline)) {
      if (is_stopping()) break;
      return absl::UnavailableError(
          absl::StrCat("no coordinator answers at ", options_.coordinator, "; is it running?"));
    }
    bool was_welcome = false;
    const absl::Status status = RunOnce(&was_welcome);
    if (is_stopping()) break;
    if (was_welcome) {
      was_ever_welcome = true;
      backoff = options_.min_backoff;
      spdlog::warn("the session with the coordinator at {} ended: {}", options_.coordinator,
                   status.message().empty() ? absl::StatusCodeToString(status.code()) : std::string(status.message()));
    } else {
      // A worker that hosts something goes on trying: what it runs must not end by a mistake in a restart.
      if (IsFinal(status) && !was_ever_welcome) return status;
      if (!was_ever_welcome && absl::Now() + backoff >= first_deadline) {
        // Taken: another worker has this id. Anything else: what answers is no coordinator.
        if (absl::IsAlreadyExists(status)) return status;
        return absl::UnavailableError(absl::StrCat("no coordinator answers at ", options_.coordinator, " (",
                                                   status.message(), "); is it running?"));
      }
      spdlog::debug("no session with the coordinator at {}: {}", options_.coordinator, status.ToString());
    }
    const absl::Time wake = absl::Now() + backoff;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithDeadline(absl::Condition(&is_stopping_), wake);
    }
    backoff = std::min(backoff * 2, options_.max_backoff);
  }
  return absl::OkStatus();
}

}  // namespace qst
