// Feeds the loop with micro-batches whose hidden states are on their way: groups consecutive ones (across optimizer
// steps and evaluations) into backbone passes and keeps the stages ahead of the side network.
#ifndef QST_WORKER_TRAIN_MICRO_BATCH_QUEUE_H_
#define QST_WORKER_TRAIN_MICRO_BATCH_QUEUE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/side/side_network.h"
#include "worker/stream/hidden_state_stream.h"
#include "worker/train/example_set.h"
#include "worker/train/training_plan.h"

namespace qst {

struct MicroBatch {
  WorkItem work;
  SideBatch batch;
  std::uint64_t pass_id = 0;
  std::int64_t first_row = 0;  // of the pass

  std::int64_t num_tokens() const { return batch.num_tokens(); }
};

// Not thread-safe; all pointers must outlive the queue.
//
//   Next -> States ... -> Next -> ... -> Next gives nothing: the end
class MicroBatchQueue {
 public:
  struct Options {
    // A pass takes micro-batches while they fit, and always one.
    std::int64_t backbone_batch_tokens = 4096;
    std::int64_t max_passes_in_flight = 2;
    std::int64_t first_layer = 0;
  };

  MicroBatchQueue(const Options& options, const ExampleSet* train, const ExampleSet* eval, WorkSequence* work,
                  HiddenStateStream* stream, const std::atomic<bool>* is_cancelled);

  // The next micro-batch; ends the one before. kCancelled as soon as the flag is set; errors of the stream.
  absl::StatusOr<std::optional<MicroBatch>> Next();

  // Hidden states of the current micro-batch, for SideNetwork; valid until the next call of Next.
  HiddenStateSource States();

  // Time that the sources have spent waiting for the stages, in all.
  absl::Duration waiting_time() const { return waiting_time_; }
  std::uint64_t num_passes() const { return next_pass_id_; }

 private:
  absl::Status SubmitAhead();
  absl::Status CheckCancelled() const;

  const Options options_;
  const ExampleSet* train_;
  const ExampleSet* eval_;
  WorkSequence* work_;
  HiddenStateStream* stream_;
  const std::atomic<bool>* is_cancelled_;

  std::optional<WorkItem> lookahead_;  // taken from the sequence, in no pass yet
  bool sequence_ended_ = false;
  std::deque<MicroBatch> queued_;  // submitted, in order
  std::optional<MicroBatch> current_;
  std::uint64_t next_pass_id_ = 0;
  std::uint64_t num_released_ = 0;
  absl::Duration waiting_time_;
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_MICRO_BATCH_QUEUE_H_
