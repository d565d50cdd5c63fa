// The coordinator's log: one line per event on stderr, naming job, worker and stage. The one place that knows spdlog.
#ifndef QST_SERVER_LOG_H_
#define QST_SERVER_LOG_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qst {

// Level "debug", "info", "warning", "error" or "off"; kInvalidArgument otherwise.
absl::Status InitLog(absl::string_view level);

void LogDebug(absl::string_view message);
void LogInfo(absl::string_view message);
void LogWarning(absl::string_view message);
void LogError(absl::string_view message);

}  // namespace qst

#endif  // QST_SERVER_LOG_H_
