#include "server/server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "server/api_service.h"
#include "server/control_loop.h"
#include "server/control_service.h"
#include "server/job_store/sqlite_job_store.h"
#include "server/log.h"
#include "server/task_pool.h"

namespace qst {
namespace {

constexpr int kFileThreads = 2;
// The largest message is a piece of a data set (1 MiB); metrics lines, specs and prompts stay below that.
constexpr int kMaxMessageBytes = 4 * 1024 * 1024;
// Connections that are quiet for kKeepaliveTimeMs are pinged, and cut if no answer comes within kKeepaliveTimeoutMs:
// together below the 15 s within which a lost worker must be reported. Peers may ping as well, but not more often than
// every kMinPingIntervalMs.
constexpr int kKeepaliveTimeMs = 5000;
constexpr int kKeepaliveTimeoutMs = 5000;
constexpr int kMinPingIntervalMs = 2500;

// gRPC tells of broken connections and failed binds on its own; callers get the same as statuses.
void LogFromGrpc(gpr_log_func_args* arguments) { LogDebug(absl::StrCat("grpc: ", arguments->message)); }

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  std::unique_ptr<Server> server(new Server(options));
  QST_RETURN_IF_ERROR(server->Initialize());
  return server;
}

Server::Server(const ServerOptions& options) : options_(options) {}

absl::Status Server::Initialize() {
  QST_ASSIGN_OR_RETURN(const StoreLayout layout, StoreLayout::Open(options_.store));
  QST_ASSIGN_OR_RETURN(store_, SqliteJobStore::Open(layout.DatabasePath()));
  loop_ = std::make_unique<ControlLoop>(options_.clock != nullptr ? options_.clock : &system_clock_);
  files_ = std::make_unique<TaskPool>(kFileThreads);
  coordinator_ = std::make_unique<Coordinator>(loop_.get(), store_.get(), layout, options_.coordinator);
  absl::Status started = absl::InternalError("the control loop has stopped");
  loop_->RunAndWait([this, &started] { started = coordinator_->Start(); });
  QST_RETURN_IF_ERROR(started);
  api_ = std::make_unique<ApiService>(loop_.get(), files_.get(), coordinator_.get(), layout);
  control_ = std::make_unique<ControlService>(loop_.get(), coordinator_.get());
  QST_RETURN_IF_ERROR(Bind());
  SetServing(true);
  LogInfo(absl::StrCat("serving on ", address_, ", store ", layout.root()));
  return absl::OkStatus();
}

absl::Status Server::Bind() {
  const std::size_t colon = options_.listen.rfind(':');
  int wanted_port = -1;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(options_.listen.substr(colon + 1), &wanted_port) ||
      wanted_port < 0 || wanted_port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("listen: must be host:port, is '", options_.listen, "'"));
  }
  gpr_set_log_function(LogFromGrpc);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(api_.get());
  builder.RegisterService(control_.get());
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  // Without this a second coordinator on the same port would take half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  if (options_.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc_server_ = builder.BuildAndStart();
  if (grpc_server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.listen, ": is the address in use?"));
  }
  address_ = absl::StrCat(options_.listen.substr(0, colon), ":", port);
  return absl::OkStatus();
}

void Server::SetServing(bool is_serving) {
  grpc::HealthCheckServiceInterface* health = grpc_server_->GetHealthCheckService();
  if (health == nullptr) return;
  // Under "" and, for clients that ask for one of them, under the services' full names.
  health->SetServingStatus(is_serving);
  health->SetServingStatus(v1::Coordinator::service_full_name(), is_serving);
  health->SetServingStatus(v1::WorkerControl::service_full_name(), is_serving);
}

void Server::StopServing(absl::Duration patience) {
  if (grpc_server_ == nullptr) return;
  grpc_server_->Shutdown(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(absl::ToInt64Milliseconds(patience)));
  grpc_server_->Wait();
  // Only now has every reaction run, and nothing refers to the services any more.
  grpc_server_.reset();
}

void Server::Stop(absl::Duration patience) {
  if (grpc_server_ == nullptr) return;
  LogInfo("shutting down");
  SetServing(false);
  loop_->RunAndWait([this] {
    for (const v1::Worker& worker : coordinator_->registry().List()) {
      if (worker.state() == v1::WORKER_STATE_BUSY) {
        LogInfo(absl::StrCat(coordinator_->registry().Describe(worker.id()), " goes on with ",
                             worker.job_id().empty() ? "an import" : absl::StrCat("job ", worker.job_id())));
      }
    }
    coordinator_->BeginDrain();
  });
  StopServing(patience);
  files_->Stop();
  loop_->Stop();
  // Closed here, not only by the destructor: what follows may be another coordinator on this store.
  coordinator_.reset();
  store_.reset();
  LogInfo("stopped");
}

Server::~Server() {
  StopServing(absl::ZeroDuration());
  if (files_ != nullptr) files_->Stop();
  if (loop_ != nullptr) loop_->Stop();
}

}  // namespace qst
