#include "worker/stream/transport.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr absl::string_view kPeerReportedKey = "qst/peer-reported";

}  // namespace

bool Transport::CarriesDeviceMemory(int) const { return false; }

absl::StatusOr<std::unique_ptr<PendingReceive>> Transport::ReceiveOnDevice(int peer, Tag, std::int64_t) {
  return CheckOnHost(peer, /*is_on_device=*/true);
}

absl::Status CheckOnHost(int peer, bool is_on_device) {
  if (!is_on_device) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("messages between this rank and rank ", peer, " travel from host memory; copy them there first"));
}

bool IsPeerReported(const absl::Status& status) { return status.GetPayload(kPeerReportedKey).has_value(); }

absl::Status AsPeerReported(const absl::Status& reason, absl::string_view name) {
  // A failure that is passed on keeps naming the rank where it began.
  if (IsPeerReported(reason)) return reason;
  absl::Status status = name.empty() ? reason : Annotate(reason, name);
  status.SetPayload(kPeerReportedKey, absl::Cord("1"));
  return status;
}

}  // namespace qst
