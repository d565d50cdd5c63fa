// Addresses: the coordinator's, and this machine's own as its peers see it.
#ifndef QST_WORKER_WORKER_ADDRESS_H_
#define QST_WORKER_WORKER_ADDRESS_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

// "host:port" or "[v6]:port" in two. kInvalidArgument: anything else.
absl::StatusOr<std::pair<std::string, std::string>> SplitHostPort(absl::string_view address);

// The IP address of this machine on its way to `host`: 127.0.0.1 if that is this machine by loopback. kUnavailable:
// no way there.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& host, const std::string& port);

std::string MachineName();

}  // namespace qst

#endif  // QST_WORKER_WORKER_ADDRESS_H_
