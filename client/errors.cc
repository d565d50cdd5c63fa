#include "client/errors.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace qst {
namespace {

constexpr absl::string_view kUsage = "qst/usage";
constexpr absl::string_view kUnreachable = "qst/unreachable";

absl::Status Tagged(absl::StatusCode code, absl::string_view message, absl::string_view tag) {
  absl::Status status(code, message);
  status.SetPayload(tag, absl::Cord("1"));
  return status;
}

}  // namespace

absl::Status UsageError(absl::string_view message) {
  return Tagged(absl::StatusCode::kInvalidArgument, message, kUsage);
}

absl::Status UnreachableError(absl::string_view address, absl::string_view cause) {
  return Tagged(
      absl::StatusCode::kUnavailable,
      absl::StrCat("no coordinator answers at ", address, cause.empty() ? "" : " (", cause, cause.empty() ? "" : ")",
                   "; start one with `qst up`, or name it with --coordinator=HOST:PORT"),
      kUnreachable);
}

bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsage).has_value(); }

bool IsUnreachable(const absl::Status& status) { return status.GetPayload(kUnreachable).has_value(); }

absl::Status WithContext(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload(
      [&result](absl::string_view type, const absl::Cord& payload) { result.SetPayload(type, payload); });
  return result;
}

int ExitStatus(const absl::Status& status) {
  if (status.ok()) return kExitDone;
  if (IsUsageError(status)) return kExitUsage;
  if (IsUnreachable(status)) return kExitUnreachable;
  return kExitFailed;
}

}  // namespace qst
