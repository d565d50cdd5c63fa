// Status conversion at the gRPC boundary: codes are equal by number, messages pass unchanged.
#ifndef QST_PROTO_SUPPORT_GRPC_STATUS_H_
#define QST_PROTO_SUPPORT_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace qst {

inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

inline absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace qst

#endif  // QST_PROTO_SUPPORT_GRPC_STATUS_H_
