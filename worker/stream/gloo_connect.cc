// How a GlooTransport comes about: listening, exchange of addresses, connections.
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <csignal>

#include "absl/time/clock.h"
#include "proto/support/status_macros.h"
#include "worker/stream/gloo_impl.h"
#include "worker/stream/listen_address.h"

namespace qst {

std::string WithoutGlooSource(const std::string& what) {
  const std::size_t end = what.find("] ");
  return !what.empty() && what[0] == '[' && end != std::string::npos ? what.substr(end + 2) : what;
}

absl::Status GlooTransport::Impl::Listen() {
  std::signal(SIGPIPE, SIG_IGN);
  // Resolved here: Gloo loses memory when it fails to, and says less.
  const absl::StatusOr<std::string> address = ResolveListenAddress(options_.interface, options_.host);
  if (!address.ok()) return Annotate(address.status(), "data plane");
  try {
    gloo::transport::tcp::attr attr;
    attr.hostname = *address;
    auto device = gloo::transport::tcp::CreateDevice(attr);
    // Gloo waits five times its timeout for a connection.
    const auto timeout = absl::ToChronoMilliseconds(options_.connect_timeout / 5);
    context_ = std::make_shared<GlooMesh>(options_.rank, static_cast<int>(options_.names.size()), std::move(device),
                                          options_.peers, std::max(timeout, std::chrono::milliseconds(1)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("data plane: cannot listen at ", *address, ": ", WithoutGlooSource(error.what())));
  }
  for (int peer : options_.peers) peers_[peer];
  return absl::OkStatus();
}

absl::Status GlooTransport::Impl::ConnectPeer(KeyValueStore& store, int rank, absl::Time deadline) {
  const std::string key = absl::StrCat("data/", rank, "-", options_.rank);
  absl::StatusOr<std::string> address;
  for (;;) {
    // In slices, so that an abort ends the wait.
    address = store.Get(key, std::min(absl::Seconds(1), deadline - absl::Now()));
    QST_RETURN_IF_ERROR(status());
    if (address.ok() || !absl::IsDeadlineExceeded(address.status()) || absl::Now() >= deadline) break;
  }
  if (!address.ok()) {
    return absl::UnavailableError(absl::StrCat(name(rank), " did not appear within ",
                                               absl::FormatDuration(options_.connect_timeout), " (",
                                               address.status().message(), ")"));
  }
  try {
    context_->getPair(rank)->connect(std::vector<char>(address->begin(), address->end()));
  } catch (const std::exception& error) {
    QST_RETURN_IF_ERROR(status());
    return absl::UnavailableError(
        absl::StrCat("could not connect to ", name(rank), ": ", WithoutGlooSource(error.what())));
  }
  return status();
}

absl::Status GlooTransport::Impl::Connect(KeyValueStore& store) {
  {
    absl::MutexLock lock(&mutex_);
    QST_RETURN_IF_ERROR(status_);
    is_connecting_ = true;
  }
  const absl::Time deadline = absl::Now() + options_.connect_timeout;
  absl::Status status;
  for (int rank : options_.peers) {
    const std::vector<char> bytes = context_->getPair(rank)->address().bytes();
    status = store.Set(absl::StrCat("data/", options_.rank, "-", rank), std::string(bytes.begin(), bytes.end()));
    if (!status.ok()) break;
  }
  for (int rank : options_.peers) {
    if (status.ok()) status = ConnectPeer(store, rank, deadline);
  }
  {
    absl::MutexLock lock(&mutex_);
    is_connecting_ = false;
    if (status_.ok() && status.ok()) {
      for (auto& [rank, peer] : peers_) peer.is_connected = true;
    }
  }
  if (status.ok()) status = this->status();
  if (!status.ok()) {
    Fail(status);
    return status;
  }
  for (auto& [rank, peer] : peers_) {
    try {
      PostLastWords(rank, peer);
    } catch (const std::exception& error) {
      status = absl::UnavailableError(
          absl::StrCat("lost the connection to ", name(rank), ": ", WithoutGlooSource(error.what())));
      Fail(status);
      return status;
    }
  }
  for (auto& [rank, peer] : peers_) {
    const int r = rank;
    peer.watcher = std::thread([this, r] { Watch(r); });
    peer.reaper = std::thread([this, r] { Reap(r); });
  }
  timer_ = std::thread([this] { RunTimer(); });
  return absl::OkStatus();
}

}  // namespace qst
