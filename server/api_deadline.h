// The deadline of a call, for the domain.
#ifndef QST_SERVER_API_DEADLINE_H_
#define QST_SERVER_API_DEADLINE_H_

#include <grpcpp/grpcpp.h>

#include <chrono>

#include "absl/time/time.h"

namespace qst {

// The client's deadline in the control loop's time, which tests may move.
inline absl::Time DeadlineOf(const grpc::CallbackServerContext& context, absl::Time now) {
  const auto left = context.deadline() - std::chrono::system_clock::now();
  // A call without a deadline has one at the end of time.
  if (left > std::chrono::hours(24 * 365)) return absl::InfiniteFuture();
  return now + absl::FromChrono(left);
}

}  // namespace qst

#endif  // QST_SERVER_API_DEADLINE_H_
