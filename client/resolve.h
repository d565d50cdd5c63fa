// Finds what the user means by a name or the beginning of an id.
#ifndef QST_CLIENT_RESOLVE_H_
#define QST_CLIENT_RESOLVE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/coordinator_client.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

// The job whose id is `text`; else the newest of that name; else the only one whose id begins so (with or without
// "j-"). `jobs` are newest first. kNotFound, or kInvalidArgument if several ids begin so.
absl::StatusOr<std::string> ResolveJob(absl::string_view text, const std::vector<v1::Job>& jobs);

// The same among the coordinator's jobs. A full id needs no call.
absl::StatusOr<std::string> ResolveJob(absl::string_view text, CoordinatorClient& client);

// The id of the only data set whose id begins with `text` (6 characters or more), which is how lists show it; `text`
// itself if it is a name or an id, or nothing begins so.
absl::StatusOr<std::string> ResolveDataset(const std::string& text, CoordinatorClient& client);

}  // namespace qst

#endif  // QST_CLIENT_RESOLVE_H_
