#include "worker/train/micro_batch_queue.h"

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "proto/support/status_macros.h"

namespace qst {

MicroBatchQueue::MicroBatchQueue(const Options& options, const ExampleSet* train, const ExampleSet* eval,
                                 WorkSequence* work, HiddenStateStream* stream, const std::atomic<bool>* is_cancelled)
    : options_(options), train_(train), eval_(eval), work_(work), stream_(stream), is_cancelled_(is_cancelled) {}

absl::Status MicroBatchQueue::CheckCancelled() const {
  if (is_cancelled_ != nullptr && is_cancelled_->load()) return absl::CancelledError("the job was cancelled");
  return absl::OkStatus();
}

// Fills passes until the credit is used up or the work ends.
absl::Status MicroBatchQueue::SubmitAhead() {
  while (static_cast<std::int64_t>(next_pass_id_ - num_released_) < options_.max_passes_in_flight) {
    TokenPass pass;
    pass.id = next_pass_id_;
    while (!sequence_ended_) {
      if (!lookahead_) lookahead_ = work_->Next();
      if (!lookahead_) {
        sequence_ended_ = true;
        break;
      }
      const ExampleSet& set = lookahead_->kind == WorkItem::Kind::kTrain ? *train_ : *eval_;
      MicroBatch micro_batch;
      micro_batch.batch = set.MakeBatch(lookahead_->examples);
      const std::int64_t first_row = pass.num_tokens();
      if (first_row > 0 && first_row + micro_batch.num_tokens() > options_.backbone_batch_tokens) break;
      set.AppendTokens(lookahead_->examples, &pass);
      micro_batch.work = *std::move(lookahead_);
      micro_batch.pass_id = pass.id;
      micro_batch.first_row = first_row;
      queued_.push_back(std::move(micro_batch));
      lookahead_.reset();
    }
    if (pass.tokens.empty()) break;
    QST_RETURN_IF_ERROR(stream_->Submit(std::move(pass), options_.first_layer));
    ++next_pass_id_;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<MicroBatch>> MicroBatchQueue::Next() {
  QST_RETURN_IF_ERROR(CheckCancelled());
  if (current_) {
    const bool pass_is_done = queued_.empty() || queued_.front().pass_id != current_->pass_id;
    if (pass_is_done) {
      stream_->Release(current_->pass_id);
      ++num_released_;
    }
    current_.reset();
  }
  QST_RETURN_IF_ERROR(SubmitAhead());
  if (queued_.empty()) return std::optional<MicroBatch>();
  current_ = std::move(queued_.front());
  queued_.pop_front();
  return current_;
}

HiddenStateSource MicroBatchQueue::States() {
  QST_CHECK(current_.has_value());
  const std::uint64_t pass_id = current_->pass_id;
  const std::int64_t begin = current_->first_row;
  const std::int64_t end = begin + current_->num_tokens();
  return [this, pass_id, begin, end](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
    const absl::Time start = absl::Now();
    absl::StatusOr<ConstMatrixView> states = stream_->Wait(pass_id, layer);
    waiting_time_ += absl::Now() - start;
    if (!states.ok()) {
      // Whoever cancels also wakes us through the stream, whose own words then matter less.
      QST_RETURN_IF_ERROR(CheckCancelled());
      return states.status();
    }
    if (states->rows < end) {
      return absl::InternalError("hidden states have fewer rows than the pass has tokens");
    }
    return Rows(*states, begin, end);
  };
}

}  // namespace qst
