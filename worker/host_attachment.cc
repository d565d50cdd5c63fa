#include "worker/host_attachment.h"

#include <utility>

#include "proto/support/status_macros.h"

namespace qst {

// The link to the stages of one plan, and the stream over it.
struct StageAttachment::Hold {
  Hold(const v1::JobPlan& job_plan, const PartContext& context)
      : plan(job_plan), link(job_plan, job_plan.stages_size(), context) {}

  const v1::JobPlan plan;
  PartLink link;
  Transport* transport = nullptr;
  std::unique_ptr<LiveStream> stream;
};

StageAttachment::StageAttachment(const v1::JobPlan& plan, const PartContext& context)
    : context_(context), current_(std::make_shared<Hold>(plan, context)) {}

StageAttachment::~StageAttachment() = default;

absl::StatusOr<std::shared_ptr<LiveStream>> StageAttachment::ConnectHold(const std::shared_ptr<Hold>& hold,
                                                                         LiveStreamOptions options) {
  QST_ASSIGN_OR_RETURN(Transport * transport, hold->link.Connect());
  options.stages.clear();
  for (const v1::PlacedStage& stage : hold->plan.stages()) {
    options.stages.push_back({stage.first_layer(), stage.num_layers()});
  }
  QST_ASSIGN_OR_RETURN(hold->stream, LiveStream::Create(*transport, std::move(options)));
  absl::MutexLock lock(&mutex_);
  hold->transport = transport;
  return std::shared_ptr<LiveStream>(hold, hold->stream.get());
}

absl::StatusOr<std::shared_ptr<LiveStream>> StageAttachment::Connect(const LiveStreamOptions& options) {
  std::shared_ptr<Hold> hold;
  {
    absl::MutexLock lock(&mutex_);
    QST_RETURN_IF_ERROR(aborted_);
    hold = current_;
  }
  return ConnectHold(hold, options);
}

absl::StatusOr<std::shared_ptr<LiveStream>> StageAttachment::Reconnect(const LiveStreamOptions& options,
                                                                       const std::function<void()>& on_detached) {
  bool must_tell = false;
  std::shared_ptr<Hold> lost;
  {
    absl::MutexLock lock(&mutex_);
    must_tell = aborted_.ok() && next_ == nullptr;
    lost = current_;
  }
  // Stages that are still there learn that they are of no more use.
  lost->link.Abort(absl::UnavailableError("the stages of the job are placed again"));
  if (must_tell) on_detached();
  std::shared_ptr<Hold> hold;
  {
    absl::MutexLock lock(&mutex_);
    while (aborted_.ok() && next_ == nullptr) changed_.Wait(&mutex_);
    QST_RETURN_IF_ERROR(aborted_);
    hold = current_ = std::move(next_);
    next_ = nullptr;
  }
  return ConnectHold(hold, options);
}

void StageAttachment::Attach(const v1::JobPlan& plan, std::shared_ptr<InprocHub> hub) {
  PartContext context = context_;
  context.hub = std::move(hub);
  auto hold = std::make_shared<Hold>(plan, context);
  std::shared_ptr<Hold> superseded;
  std::shared_ptr<Hold> given_up;
  {
    absl::MutexLock lock(&mutex_);
    if (!aborted_.ok()) return;
    superseded = std::move(next_);
    next_ = std::move(hold);
    given_up = current_;
    changed_.SignalAll();
  }
  // Whoever waits for these stages turns to the next.
  given_up->link.Abort(absl::UnavailableError("the stages of the job are placed again"));
}

void StageAttachment::Abort(const absl::Status& reason) {
  std::shared_ptr<Hold> current;
  std::shared_ptr<Hold> next;
  {
    absl::MutexLock lock(&mutex_);
    if (aborted_.ok()) aborted_ = reason;
    current = current_;
    next = next_;
    changed_.SignalAll();
  }
  current->link.Abort(reason);
  if (next != nullptr) next->link.Abort(reason);
}

absl::Status StageAttachment::Close(absl::Duration timeout) {
  std::shared_ptr<Hold> hold;
  {
    absl::MutexLock lock(&mutex_);
    hold = current_;
  }
  return hold->link.Close(timeout, "");
}

std::string StageAttachment::plan_id() const {
  absl::MutexLock lock(&mutex_);
  return current_->plan.plan_id();
}

std::vector<std::string> StageAttachment::PeerNotes() const {
  absl::MutexLock lock(&mutex_);
  return current_->transport == nullptr ? std::vector<std::string>() : current_->transport->PeerNotes();
}

}  // namespace qst
