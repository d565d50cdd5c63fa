#include "worker/stream/transport.h"

#include "absl/strings/cord.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr absl::string_view kPeerReportedKey = "qst/peer-reported";

}  // namespace

bool IsPeerReported(const absl::Status& status) { return status.GetPayload(kPeerReportedKey).has_value(); }

absl::Status AsPeerReported(const absl::Status& reason, absl::string_view name) {
  // A failure that is passed on keeps naming the rank where it began.
  if (IsPeerReported(reason)) return reason;
  absl::Status status = name.empty() ? reason : Annotate(reason, name);
  status.SetPayload(kPeerReportedKey, absl::Cord("1"));
  return status;
}

}  // namespace qst
