// The workers' side of the coordinator over gRPC: sessions and the rendezvous of data-plane peers.
#ifndef QST_SERVER_CONTROL_SERVICE_H_
#define QST_SERVER_CONTROL_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include "proto/qst/v1/control.grpc.pb.h"
#include "server/control_loop.h"
#include "server/coordinator.h"

namespace qst {

class ControlService final : public v1::WorkerControl::CallbackService {
 public:
  ControlService(ControlLoop* loop, Coordinator* coordinator) : loop_(loop), coordinator_(coordinator) {}

  grpc::ServerBidiReactor<v1::WorkerReport, v1::WorkerCommand>* Session(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* SetKey(grpc::CallbackServerContext* context, const v1::SetKeyRequest* request,
                                   v1::SetKeyResponse* response) override;
  grpc::ServerUnaryReactor* GetKey(grpc::CallbackServerContext* context, const v1::GetKeyRequest* request,
                                   v1::GetKeyResponse* response) override;

 private:
  ControlLoop* const loop_;
  Coordinator* const coordinator_;
};

}  // namespace qst

#endif  // QST_SERVER_CONTROL_SERVICE_H_
