#include "worker/stream/device_timer.h"

#include <utility>

#include "absl/time/clock.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::Status DeviceTimer::Begin() {
  if (ctx_.device == DeviceType::kCpu) {
    begin_ = absl::Now();
    return absl::OkStatus();
  }
  QST_RETURN_IF_ERROR(Collect(/*wait=*/false));
  Stretch stretch;
  if (spare_.empty()) {
    QST_ASSIGN_OR_RETURN(stretch.begin, DeviceEvent::Create(ctx_, /*is_timed=*/true));
    QST_ASSIGN_OR_RETURN(stretch.end, DeviceEvent::Create(ctx_, /*is_timed=*/true));
  } else {
    stretch = std::move(spare_.back());
    spare_.pop_back();
  }
  QST_RETURN_IF_ERROR(stretch.begin.Record(ctx_));
  open_.push_back(std::move(stretch));
  return absl::OkStatus();
}

absl::Status DeviceTimer::End() {
  if (ctx_.device == DeviceType::kCpu) {
    total_ += absl::Now() - begin_;
    return absl::OkStatus();
  }
  return open_.back().end.Record(ctx_);
}

absl::Status DeviceTimer::Collect(bool wait) {
  while (!open_.empty()) {
    Stretch& oldest = open_.front();
    if (wait) QST_RETURN_IF_ERROR(oldest.end.Wait());
    QST_ASSIGN_OR_RETURN(const bool is_done, oldest.end.IsDone());
    if (!is_done) break;
    QST_ASSIGN_OR_RETURN(const absl::Duration duration, oldest.end.Since(oldest.begin));
    total_ += duration;
    spare_.push_back(std::move(oldest));
    open_.pop_front();
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Duration> DeviceTimer::Total() {
  QST_RETURN_IF_ERROR(Collect(/*wait=*/true));
  return total_;
}

}  // namespace qst
