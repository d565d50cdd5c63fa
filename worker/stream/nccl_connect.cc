// How the edges of an NcclTransport come about.
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"
#include "worker/stream/frame.h"
#include "worker/stream/nccl_impl.h"

namespace qst {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(1);
constexpr std::int64_t kFirstMessageBytes = 16;

static_assert(sizeof(ncclUniqueId) == kNcclIdBytes, "FORMAT.md");

}  // namespace

absl::Status NcclTransport::Impl::DidNotConnect(const NcclLink& link) const {
  return absl::UnavailableError(absl::StrCat("NCCL: ", name(link.peer), " did not connect within ",
                                             absl::FormatDuration(options_.connect_timeout)));
}

absl::Status NcclTransport::Impl::Connect() {
  const absl::Time deadline = absl::Now() + options_.connect_timeout;
  absl::Status status = ConnectLinks(deadline);
  if (status.ok()) {
    engine_ = std::thread([this] { RunEngine(); });
    status = SendFirstMessages(deadline);
  }
  if (!status.ok()) {
    // If it is what somebody else's failure did here, that one is known already.
    Fail(status, /*is_own=*/false);
    if (!engine_.joinable()) EndLinks(/*in_order=*/false);
    return this->status();
  }
  absl::MutexLock lock(&mutex_);
  QST_RETURN_IF_ERROR(status_);
  state_ = State::kOpen;
  return absl::OkStatus();
}

absl::Status NcclTransport::Impl::ConnectLinks(absl::Time deadline) {
  cuda::Device& device = cuda::DeviceOf(*options_.ctx.stream);
  for (const std::unique_ptr<NcclLink>& link : links_) {
    QST_ASSIGN_OR_RETURN(link->stream, device.NewTransferStream());
    link->ctx.device = DeviceType::kCuda;
    link->ctx.stream = link->stream.get();
    if (link->is_sender) continue;
    QST_ASSIGN_OR_RETURN(link->end_notice, control_->Receive(link->peer, NcclEndTag(link->is_upward()), kNcclEndBytes));
  }
  std::vector<ncclUniqueId> ids(links_.size());
  QST_RETURN_IF_ERROR(ExchangeIds(deadline, &ids));
  for (std::size_t i = 0; i < links_.size(); ++i) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = 1;
    config.maxCTAs = options_.max_blocks;
    const ncclResult_t result = nccl_.CommInitRankConfig(&links_[i]->comm, 2, ids[i], links_[i]->rank_in_pair, &config);
    if (result != ncclInProgress) QST_RETURN_IF_ERROR(ToStatus(*links_[i], result));
  }
  return AwaitReady(deadline);
}

absl::Status NcclTransport::Impl::ExchangeIds(absl::Time deadline, std::vector<ncclUniqueId>* ids) {
  const auto pool = BufferPool::Create();
  for (std::size_t i = 0; i < links_.size(); ++i) {
    const NcclLink& link = *links_[i];
    if (link.rank_in_pair != 0) continue;
    QST_RETURN_IF_ERROR(ToStatus(link, nccl_.GetUniqueId(&(*ids)[i])));
    QST_ASSIGN_OR_RETURN(SharedBuffer buffer, pool->Get(kNcclIdBytes));
    std::memcpy(buffer->data(), &(*ids)[i], kNcclIdBytes);
    QST_RETURN_IF_ERROR(control_->Send(link.peer, NcclIdTag(link.is_upward()), std::move(buffer)));
  }
  for (std::size_t i = 0; i < links_.size(); ++i) {
    const NcclLink& link = *links_[i];
    if (link.rank_in_pair == 0) continue;
    QST_ASSIGN_OR_RETURN(const auto pending, control_->Receive(link.peer, NcclIdTag(link.is_upward()), kNcclIdBytes));
    const absl::StatusOr<SharedBuffer> buffer = pending->Wait(deadline - absl::Now());
    if (absl::IsDeadlineExceeded(buffer.status())) return DidNotConnect(link);
    QST_RETURN_IF_ERROR(buffer.status());
    std::memcpy(&(*ids)[i], (*buffer)->data(), kNcclIdBytes);
  }
  return absl::OkStatus();
}

absl::Status NcclTransport::Impl::AwaitReady(absl::Time deadline) {
  for (const std::unique_ptr<NcclLink>& link : links_) {
    for (;;) {
      QST_ASSIGN_OR_RETURN(const bool is_ready, IsReady(*link));
      if (is_ready) break;
      if (absl::Now() >= deadline) return DidNotConnect(*link);
      absl::MutexLock lock(&mutex_);
      QST_RETURN_IF_ERROR(status_);
      changed_.WaitWithTimeout(&mutex_, kPollInterval);
    }
  }
  return absl::OkStatus();
}

// NCCL connects two ranks when they first exchange something, and allocates then what it needs: not in mid-training.
absl::Status NcclTransport::Impl::SendFirstMessages(absl::Time deadline) {
  std::vector<SharedMessage> messages;
  for (const std::unique_ptr<NcclLink>& link : links_) {
    QST_ASSIGN_OR_RETURN(SharedBuffer buffer, pool_->Get(kFirstMessageBytes));
    if (link->is_sender) {
      QST_RETURN_IF_ERROR(buffer->BeginUse(options_.ctx));
      QST_RETURN_IF_ERROR(FillZero(options_.ctx, buffer->data(), kFirstMessageBytes));
      QST_RETURN_IF_ERROR(buffer->EndUse(options_.ctx));
    }
    QST_ASSIGN_OR_RETURN(SharedMessage message, Post(*link, std::nullopt, std::move(buffer)));
    messages.push_back(std::move(message));
  }
  absl::MutexLock lock(&mutex_);
  for (std::size_t i = 0; i < links_.size(); ++i) {
    while (!messages[i]->is_done && status_.ok()) {
      if (changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline) return DidNotConnect(*links_[i]);
    }
    QST_RETURN_IF_ERROR(status_);
  }
  return absl::OkStatus();
}

}  // namespace qst
