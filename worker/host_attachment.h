// A side network's hold on its stages, which may be placed again while it lives.
#ifndef QST_WORKER_HOST_ATTACHMENT_H_
#define QST_WORKER_HOST_ATTACHMENT_H_

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
#include "worker/host_link.h"
#include "worker/host_part.h"
#include "worker/stream/live_stream.h"

namespace qst {

// Connect, Reconnect and Close are for the part's own thread; Attach and Abort for any.
//
//   Connect ──▶ attached ──(stages lost)──▶ Reconnect: waits for Attach, connects ──▶ attached ──▶ Close
//                  └──(Attach comes first: the stages are given up)──▲
class StageAttachment {
 public:
  // Takes the side's end in the plan's hub at once, see PartLink.
  StageAttachment(const v1::JobPlan& plan, const PartContext& context);
  // Aborts what was not closed.
  ~StageAttachment();

  // Waits for the plan's peers, see PartLink::Connect. `options` without the stages, which are the plan's. What the
  // stream stands on lives as long as the pointer.
  absl::StatusOr<std::shared_ptr<LiveStream>> Connect(const LiveStreamOptions& options);
  // The same with the stages of the next plan, for which it waits without limit; `on_detached` is called first if that
  // plan has not come yet. A stage loss (see ReplayStream) means that those are lost as well.
  absl::StatusOr<std::shared_ptr<LiveStream>> Reconnect(const LiveStreamOptions& options,
                                                        const std::function<void()>& on_detached);

  // The stages were placed again, as this plan of as many stages says; `hub` is where its parts on this worker meet.
  void Attach(const v1::JobPlan& plan, std::shared_ptr<InprocHub> hub);
  // Ends whatever is under way or begins later with `reason`.
  void Abort(const absl::Status& reason);
  // Says goodbye to the present stages.
  absl::Status Close(absl::Duration timeout);

  // Of the stages that it is attached to, or tries to be.
  std::string plan_id() const;
  // Of the present stages, by rank, after Close.
  std::vector<std::string> PeerNotes() const;

 private:
  struct Hold;
  absl::StatusOr<std::shared_ptr<LiveStream>> ConnectHold(const std::shared_ptr<Hold>& hold, LiveStreamOptions options);

  const PartContext context_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  absl::Status aborted_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<Hold> current_ ABSL_GUARDED_BY(mutex_);
  // Given by Attach, not taken yet.
  std::shared_ptr<Hold> next_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_HOST_ATTACHMENT_H_
