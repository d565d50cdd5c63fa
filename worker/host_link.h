// The connection of one part to the other parts of its plan: in process, over Gloo or NCCL, or both, as the plan has
// it.
#ifndef QST_WORKER_HOST_LINK_H_
#define QST_WORKER_HOST_LINK_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.pb.h"
#include "worker/host_part.h"
#include "worker/stream/transport.h"

namespace qst {

// Connect and Close are for the part's own thread; Abort for any thread, before, during and after Connect. The
// destructor aborts what was not closed.
class PartLink {
 public:
  // Takes the rank's end in the plan's hub at once, so that peers in this process learn of a failure before the part is
  // ready to connect.
  PartLink(const v1::JobPlan& plan, int rank, const PartContext& context);

  // Waits for the peers in other processes, without limit: they may read data or weights for as long as it takes, and
  // the coordinator releases the plan when one is lost. Then, if the plan says NCCL, connects to their GPUs, which has
  // a limit. On a thread to which this part's device is current. kUnavailable, kCancelled (Abort's status),
  // kFailedPrecondition: NCCL, but no GPU or library here.
  absl::StatusOr<Transport*> Connect();

  void Abort(const absl::Status& reason);
  absl::Status Close(absl::Duration timeout, const std::string& note);

 private:
  // Calls connect(); meanwhile Abort reaches the transport.
  absl::Status Connecting(Transport* transport, const std::function<absl::Status()>& connect);
  absl::StatusOr<std::unique_ptr<Transport>> ConnectNccl(std::unique_ptr<Transport> control,
                                                         std::vector<std::string> names,
                                                         const std::vector<bool>& is_local);

  const v1::JobPlan plan_;
  const int rank_;
  const OpContext ops_;
  const DataAddress data_address_;
  std::unique_ptr<KeyValueStore> store_;

  absl::Mutex mutex_;
  absl::Status aborted_ ABSL_GUARDED_BY(mutex_);
  // What Abort reaches: the local end first, then the one that is connecting, at last the whole.
  Transport* connecting_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::unique_ptr<Transport> local_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Transport> transport_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_HOST_LINK_H_
