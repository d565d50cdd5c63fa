#include "worker/stream/listen_address.h"

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace qst {
namespace {

std::string NumericAddress(const sockaddr* address, socklen_t length) {
  char text[NI_MAXHOST];
  return getnameinfo(address, length, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

absl::StatusOr<std::string> AddressOfInterface(const std::string& interface) {
  ifaddrs* found = nullptr;
  if (getifaddrs(&found) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot list the network interfaces: ", std::strerror(errno)));
  }
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(found, &freeifaddrs);
  for (const int family : {AF_INET, AF_INET6}) {
    const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    for (const ifaddrs* entry = found; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != family || interface != entry->ifa_name) continue;
      const std::string address = NumericAddress(entry->ifa_addr, length);
      if (!address.empty()) return address;
    }
  }
  return absl::UnavailableError(absl::StrCat("there is no network interface ", interface, " with an IP address"));
}

}  // namespace

absl::StatusOr<std::string> ResolveListenAddress(const std::string& interface, const std::string& host) {
  if (!interface.empty()) return AddressOfInterface(interface);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::UnavailableError(absl::StrCat("cannot resolve ", host, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, &freeaddrinfo);
  std::string reason = "it has no address";
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    const int fd = socket(info->ai_family, info->ai_socktype, info->ai_protocol);
    if (fd < 0) continue;
    const bool is_own = bind(fd, info->ai_addr, info->ai_addrlen) == 0;
    if (!is_own) reason = std::strerror(errno);
    close(fd);
    if (is_own) return NumericAddress(info->ai_addr, info->ai_addrlen);
  }
  return absl::UnavailableError(absl::StrCat("cannot listen at ", host, ": ", reason));
}

}  // namespace qst
