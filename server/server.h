// The coordinator as a process sees it: start, serve, stop.
#ifndef QST_SERVER_SERVER_H_
#define QST_SERVER_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/clock.h"
#include "server/coordinator.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace qst {

class ApiService;
class ControlLoop;
class ControlService;
class SqliteJobStore;
class TaskPool;

struct ServerOptions {
  // host:port; port 0 takes a free one.
  std::string listen = "127.0.0.1:7310";
  // Folder of the store; made if it is not there.
  std::string store;
  // Server reflection, for grpcurl and the like.
  bool reflection = true;
  CoordinatorOptions coordinator;
  // Not owned; null = the system's.
  Clock* clock = nullptr;
};

// Start: open the store and take up what is in it, begin to serve, then say SERVING. Stop: say NOT_SERVING, refuse what
// would begin something, end sessions, give calls a while, close the store. Workers go on with what they host.
class Server {
 public:
  // kInvalidArgument: options. kUnavailable: the address cannot be bound, or the store cannot be opened.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);
  // Stops without draining if Stop was not called: as a crash would, as far as peers and store can tell.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // "127.0.0.1:7310", with the port that was taken.
  const std::string& address() const { return address_; }

  // Orderly end; calls that are still open after `patience` are cut. Not from a gRPC thread. Idempotent.
  void Stop(absl::Duration patience);

 private:
  explicit Server(const ServerOptions& options);
  absl::Status Initialize();
  absl::Status Bind();
  void SetServing(bool is_serving);
  void StopServing(absl::Duration patience);

  const ServerOptions options_;
  std::string address_;
  SystemClock system_clock_;
  // In order of construction; destroyed the other way round by the destructor.
  std::unique_ptr<SqliteJobStore> store_;
  std::unique_ptr<ControlLoop> loop_;
  std::unique_ptr<TaskPool> files_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<ApiService> api_;
  std::unique_ptr<ControlService> control_;
  std::unique_ptr<grpc::Server> grpc_server_;
};

}  // namespace qst

#endif  // QST_SERVER_SERVER_H_
