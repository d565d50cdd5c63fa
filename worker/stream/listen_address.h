// The address of this machine that the data plane listens at.
#ifndef QST_WORKER_STREAM_LISTEN_ADDRESS_H_
#define QST_WORKER_STREAM_LISTEN_ADDRESS_H_

#include <string>

#include "absl/status/statusor.h"

namespace qst {

// An IP address, as text, that this machine can listen at: that of a network interface if one is named (IPv4 before
// IPv6), else the first one that `host` resolves to. kUnavailable: no such interface, or not an address of this
// machine.
absl::StatusOr<std::string> ResolveListenAddress(const std::string& interface, const std::string& host);

}  // namespace qst

#endif  // QST_WORKER_STREAM_LISTEN_ADDRESS_H_
