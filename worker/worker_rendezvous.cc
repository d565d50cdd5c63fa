#include "worker/worker_rendezvous.h"

#include <grpcpp/client_context.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/grpc_status.h"

namespace qst {
namespace {

constexpr absl::Duration kSetTimeout = absl::Seconds(30);
constexpr absl::Duration kCallTimeout = absl::Seconds(5);
constexpr absl::Duration kRetryPause = absl::Milliseconds(200);

// Calls until it succeeds, fails for good, or the time is over.
template <typename Call>
absl::Status CallUntil(absl::Time deadline, const std::string& what, const Call& call) {
  for (;;) {
    grpc::ClientContext context;
    // A call that waits for the connection also drives it; one that fails at once would not.
    context.set_wait_for_ready(true);
    context.set_deadline(absl::ToChronoTime(std::min(deadline, absl::Now() + kCallTimeout)));
    const absl::Status status = FromGrpcStatus(call(&context));
    if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
    if (absl::Now() + kRetryPause >= deadline)
      return absl::DeadlineExceededError(absl::StrCat(what, ": ", status.message()));
    if (absl::IsUnavailable(status)) absl::SleepFor(kRetryPause);
  }
}

}  // namespace

absl::Status CoordinatorKeyValueStore::Set(const std::string& key, const std::string& value) {
  v1::SetKeyRequest request;
  request.set_plan_id(plan_id_);
  request.set_key(key);
  request.set_value(value);
  return CallUntil(absl::Now() + kSetTimeout, absl::StrCat("setting key ", key), [&](grpc::ClientContext* context) {
    v1::SetKeyResponse response;
    return stub_->SetKey(context, request, &response);
  });
}

absl::StatusOr<std::string> CoordinatorKeyValueStore::Get(const std::string& key, absl::Duration timeout) {
  v1::GetKeyRequest request;
  request.set_plan_id(plan_id_);
  request.set_key(key);
  v1::GetKeyResponse response;
  const absl::Status status =
      CallUntil(absl::Now() + timeout, absl::StrCat("waiting for key ", key),
                [&](grpc::ClientContext* context) { return stub_->GetKey(context, request, &response); });
  if (!status.ok()) return status;
  return response.value();
}

}  // namespace qst
