#include "worker/host_link.h"

#include <spdlog/spdlog.h>

#include <utility>
#include <vector>

#include "proto/support/status_macros.h"
#include "worker/stream/composite_transport.h"
#include "worker/stream/gloo_transport.h"
#include "worker/stream/nccl_transport.h"

namespace qst {
namespace {

constexpr absl::Duration kAsLongAsItTakes = absl::Hours(24 * 7);

std::string WorkerOf(const v1::JobPlan& plan, int rank) {
  return rank == plan.stages_size() ? plan.side_worker_id() : plan.stages(rank).worker_id();
}

}  // namespace

PartLink::PartLink(const v1::JobPlan& plan, int rank, const PartContext& context)
    : plan_(plan),
      rank_(rank),
      ops_(context.ops),
      data_address_(context.data_address),
      store_(context.make_store(plan.plan_id())) {
  local_ = context.hub->Endpoint(rank);
}

absl::StatusOr<Transport*> PartLink::Connect() {
  GlooOptions options;
  options.rank = rank_;
  options.interface = data_address_.interface;
  options.host = data_address_.host;
  options.connect_timeout = kAsLongAsItTakes;
  std::vector<bool> is_local;
  for (int rank = 0; rank <= plan_.stages_size(); ++rank) {
    options.names.push_back(RankName(plan_, rank));
    is_local.push_back(WorkerOf(plan_, rank) == WorkerOf(plan_, rank_));
    if (!is_local.back()) options.peers.push_back(rank);
  }
  const bool is_all_local = options.peers.empty();
  const bool is_all_remote = options.peers.size() == static_cast<std::size_t>(plan_.stages_size());

  std::unique_ptr<Transport> remote;
  if (!is_all_local) {
    QST_ASSIGN_OR_RETURN(std::unique_ptr<GlooTransport> gloo, GlooTransport::Create(options));
    QST_RETURN_IF_ERROR(Connecting(gloo.get(), [&] { return gloo->Connect(*store_); }));
    remote = std::move(gloo);
    if (plan_.data_plane() == v1::DATA_PLANE_NCCL) {
      QST_ASSIGN_OR_RETURN(remote, ConnectNccl(std::move(remote), options.names, is_local));
    }
  }
  absl::MutexLock lock(&mutex_);
  if (!aborted_.ok()) return aborted_;
  if (is_all_local) {
    transport_ = std::move(local_);
  } else if (is_all_remote) {
    transport_ = std::move(remote);
  } else {
    transport_ = MakeCompositeTransport(std::move(local_), std::move(remote), std::move(is_local));
  }
  // Peers in this process may have failed meanwhile.
  QST_RETURN_IF_ERROR(transport_->status());
  return transport_.get();
}

absl::Status PartLink::Connecting(Transport* transport, const std::function<absl::Status()>& connect) {
  {
    absl::MutexLock lock(&mutex_);
    if (!aborted_.ok()) return aborted_;
    connecting_ = transport;
  }
  const absl::Status connected = connect();
  absl::MutexLock lock(&mutex_);
  connecting_ = nullptr;
  return connected;
}

absl::StatusOr<std::unique_ptr<Transport>> PartLink::ConnectNccl(std::unique_ptr<Transport> control,
                                                                 std::vector<std::string> names,
                                                                 const std::vector<bool>& is_local) {
  NcclOptions options;
  options.names = std::move(names);
  options.ctx = ops_;
  for (const NcclEdge& edge : PipelineEdges(plan_.stages_size())) {
    const int peer = edge.from == rank_ ? edge.to : edge.from;
    if ((edge.from == rank_ || edge.to == rank_) && !is_local[peer]) options.edges.push_back(edge);
  }
  QST_ASSIGN_OR_RETURN(std::unique_ptr<NcclTransport> nccl, NcclTransport::Create(std::move(control), options));
  QST_RETURN_IF_ERROR(Connecting(nccl.get(), [&] { return nccl->Connect(); }));
  spdlog::info("job {}: {}: {}", plan_.job_id(), RankName(plan_, rank_), nccl->Describe());
  return nccl;
}

void PartLink::Abort(const absl::Status& reason) {
  absl::MutexLock lock(&mutex_);
  if (aborted_.ok()) aborted_ = reason;
  if (connecting_ != nullptr) connecting_->Abort(reason);
  if (local_ != nullptr) local_->Abort(reason);
  if (transport_ != nullptr) transport_->Abort(reason);
}

absl::Status PartLink::Close(absl::Duration timeout, const std::string& note) {
  Transport* transport = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    transport = transport_.get();
  }
  return transport == nullptr ? absl::OkStatus() : transport->Close(timeout, note);
}

}  // namespace qst
