#include "worker/worker_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace qst {

absl::StatusOr<std::pair<std::string, std::string>> SplitHostPort(absl::string_view address) {
  const std::size_t colon = address.rfind(':');
  const auto error = [&] { return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is not HOST:PORT")); };
  if (colon == absl::string_view::npos || colon == 0) return error();
  absl::string_view host = address.substr(0, colon);
  const absl::string_view port = address.substr(colon + 1);
  std::uint32_t number = 0;
  if (!absl::SimpleAtoi(port, &number) || number == 0 || number > 65535) return error();
  if (absl::ConsumePrefix(&host, "[")) {
    if (!absl::ConsumeSuffix(&host, "]")) return error();
  } else if (host.find(':') != absl::string_view::npos) {
    return error();
  }
  if (host.empty()) return error();
  return std::make_pair(std::string(host), std::string(port));
}

absl::StatusOr<std::string> LocalAddressTowards(const std::string& host, const std::string& port) {
  std::string error = "no route";
  // IPv4 first: peers must use the same family, and "localhost" names both.
  for (const int family : {AF_INET, AF_INET6}) {
    addrinfo hints = {};
    hints.ai_family = family;
    hints.ai_socktype = SOCK_DGRAM;
    addrinfo* found = nullptr;
    if (const int failed = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); failed != 0) {
      error = gai_strerror(failed);
      continue;
    }
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, &freeaddrinfo);
    for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
      // Connecting a datagram socket sends nothing; it only looks up the route.
      const int fd = socket(info->ai_family, info->ai_socktype, info->ai_protocol);
      if (fd < 0) continue;
      sockaddr_storage own = {};
      socklen_t length = sizeof(own);
      const bool is_bound = connect(fd, info->ai_addr, info->ai_addrlen) == 0 &&
                            getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) == 0;
      close(fd);
      char text[NI_MAXHOST];
      if (is_bound &&
          getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0) {
        return std::string(text);
      }
    }
  }
  return absl::UnavailableError(absl::StrCat("no way to ", host, ": ", error));
}

std::string MachineName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return "localhost";
  return name;
}

}  // namespace qst
