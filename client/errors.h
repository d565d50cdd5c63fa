// Which kind of failure a status is, and the exit status that follows from it:
//   0 done, 1 failed, 2 wrong usage (refused before the coordinator was asked for anything),
//   3 coordinator unreachable.
// The kind travels as a payload of the status, so that it survives annotation.
#ifndef QST_CLIENT_ERRORS_H_
#define QST_CLIENT_ERRORS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qst {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitUnreachable = 3;

// kInvalidArgument: a command line, job file or --set that cannot be understood.
absl::Status UsageError(absl::string_view message);

// kUnavailable: nothing answers at `address`; the message says what to do.
absl::Status UnreachableError(absl::string_view address, absl::string_view cause);

bool IsUsageError(const absl::Status& status);
bool IsUnreachable(const absl::Status& status);

// "context: message" with code and kind kept.
absl::Status WithContext(const absl::Status& status, absl::string_view context);

int ExitStatus(const absl::Status& status);

}  // namespace qst

#endif  // QST_CLIENT_ERRORS_H_
