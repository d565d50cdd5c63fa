#include "kernels/testing/cuda_shim/nccl_channel.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace qst::cuda_shim {
namespace {

// How often somebody who waits for a connection looks whether it is given up.
constexpr int kPollMilliseconds = 5;

struct FrameHead {
  std::uint64_t frame;
  std::uint64_t size;
};

bool WriteAll(int socket, const void* bytes, std::size_t size) {
  const char* at = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t written = send(socket, at, size, MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    at += written;
    size -= static_cast<std::size_t>(written);
  }
  return true;
}

bool ReadAll(int socket, void* bytes, std::size_t size) {
  char* at = static_cast<char*>(bytes);
  while (size > 0) {
    const ssize_t got = recv(socket, at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

}  // namespace

NcclChannel::NcclChannel(const std::string& name, int rank) {
  thread_ = std::thread([this, name, rank] { Run(name, rank); });
}

void NcclChannel::Abort() {
  is_aborted_ = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (socket_ >= 0) shutdown(socket_, SHUT_RDWR);
  }
  if (thread_.joinable()) thread_.join();
  { const std::lock_guard<std::mutex> lock(copying_); }
  const std::lock_guard<std::mutex> writing(writing_);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (socket_ >= 0) close(socket_);
  socket_ = -1;
}

int NcclChannel::Connect(const std::string& name, int rank) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // The first byte stays 0: no file.
  const std::size_t length = std::min(name.size(), sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path + 1, name.data(), length);
  const auto address_size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  const auto* const generic = reinterpret_cast<const sockaddr*>(&address);
  const int own = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (rank != 0) {
    while (own >= 0 && !is_aborted_) {
      if (connect(own, generic, address_size) == 0) return own;
      poll(nullptr, 0, kPollMilliseconds);
    }
    close(own);
    return -1;
  }
  int peer = -1;
  if (own >= 0 && bind(own, generic, address_size) == 0 && listen(own, 1) == 0) {
    pollfd waiting{own, POLLIN, 0};
    while (peer < 0 && !is_aborted_) {
      if (poll(&waiting, 1, kPollMilliseconds) > 0) peer = accept4(own, nullptr, nullptr, SOCK_CLOEXEC);
    }
  }
  close(own);
  return peer;
}

void NcclChannel::Run(const std::string& name, int rank) {
  const int connected = Connect(name, rank);
  if (connected >= 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      socket_ = connected;
      state_ = State::kConnected;
      // It may have come before the socket.
      if (is_aborted_) shutdown(connected, SHUT_RDWR);
    }
    ReadFrames(connected);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  state_ = State::kLost;
}

void NcclChannel::ReadFrames(int socket) {
  FrameHead head;
  while (ReadAll(socket, &head, sizeof(head))) {
    std::vector<unsigned char> bytes(head.size);
    if (!ReadAll(socket, bytes.data(), bytes.size())) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    switch (static_cast<Frame>(head.frame)) {
      case Frame::kLaunched:
        peer_has_launched_ = true;
        break;
      case Frame::kGrant:
        ++num_grants_;
        break;
      case Frame::kMessage:
        messages_.push_back(std::move(bytes));
        break;
      case Frame::kFinalized:
        peer_has_finalized_ = true;
        break;
    }
  }
}

void NcclChannel::Write(Frame frame, const void* bytes, std::size_t size) {
  const std::lock_guard<std::mutex> writing(writing_);
  int socket = -1;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    socket = socket_;
  }
  const FrameHead head{static_cast<std::uint64_t>(frame), size};
  // A connection that is gone shows elsewhere.
  if (socket >= 0 && WriteAll(socket, &head, sizeof(head))) WriteAll(socket, bytes, size);
}

NcclChannel::State NcclChannel::state() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_;
}

bool NcclChannel::peer_has_launched() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return peer_has_launched_;
}

bool NcclChannel::peer_has_finalized() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return peer_has_finalized_;
}

bool NcclChannel::has_wrong_size() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return has_wrong_size_;
}

void NcclChannel::SayLaunched() { Write(Frame::kLaunched); }
void NcclChannel::SayFinalized() { Write(Frame::kFinalized); }
void NcclChannel::GrantSend() { Write(Frame::kGrant); }

bool NcclChannel::MaySend() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_grants_ > 0;
}

void NcclChannel::Send(const void* bytes, std::size_t size) {
  const std::lock_guard<std::mutex> copying(copying_);
  if (is_aborted_) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    --num_grants_;
  }
  Write(Frame::kMessage, bytes, size);
}

bool NcclChannel::HasMessage() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !messages_.empty();
}

void NcclChannel::Receive(void* bytes, std::size_t size) {
  const std::lock_guard<std::mutex> copying(copying_);
  if (is_aborted_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::vector<unsigned char> message = std::move(messages_.front());
  messages_.pop_front();
  if (message.size() != size) has_wrong_size_ = true;
  std::memcpy(bytes, message.data(), std::min(size, message.size()));
}

}  // namespace qst::cuda_shim
