// How long a device works at something, measured without waiting for it.
#ifndef QST_WORKER_STREAM_DEVICE_TIMER_H_
#define QST_WORKER_STREAM_DEVICE_TIMER_H_

#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device_memory.h"

namespace qst {

// Adds up stretches of one context's work. On CPU, where work is done when its call returns, it is a stopwatch; on CUDA
// the stream itself notes when it comes by. Not thread-safe.
class DeviceTimer {
 public:
  // What `ctx` points to must outlive the timer.
  explicit DeviceTimer(const OpContext& ctx) : ctx_(ctx) {}

  // What is enqueued between the two counts. In turn.
  absl::Status Begin();
  absl::Status End();

  // Of all stretches so far; waits for the last.
  absl::StatusOr<absl::Duration> Total();

 private:
  struct Stretch {
    DeviceEvent begin;
    DeviceEvent end;
  };

  // Adds up the stretches that are over, all of them if asked to wait.
  absl::Status Collect(bool wait);

  const OpContext ctx_;
  absl::Time begin_;
  absl::Duration total_;
  std::deque<Stretch> open_;    // begun, or not known to be over
  std::vector<Stretch> spare_;  // events to be used again
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_DEVICE_TIMER_H_
