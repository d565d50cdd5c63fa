#include "worker/stream/replay_stream.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/tensor.h"
#include "proto/support/status_macros.h"
#include "worker/stream/transport.h"

namespace qst {

bool IsStageLoss(const absl::Status& status) {
  if (absl::IsUnavailable(status)) return true;
  // A stage that ended on request, because a peer of it was lost.
  return IsPeerReported(status) && (absl::IsCancelled(status) || absl::IsAborted(status));
}

ReplayStream::ReplayStream(std::shared_ptr<LiveStream> first, Reconnect reconnect)
    : reconnect_(std::move(reconnect)), num_layers_(first->num_layers()), hidden_size_(first->hidden_size()) {
  Begin(std::move(first), 0, 0);
}

ReplayStream::~ReplayStream() = default;

void ReplayStream::Begin(std::shared_ptr<LiveStream> stream, std::uint64_t first_id, std::int64_t first_layer) {
  absl::MutexLock lock(&mutex_);
  if (!aborted_.ok()) stream->Abort(aborted_);
  abortable_ = stream;
  generations_.push_back({std::move(stream), first_id, first_layer, first_id});
}

absl::Status ReplayStream::SubmitTo(Generation& generation, const Submitted& submitted) {
  TokenPass pass = submitted.pass;
  pass.id -= generation.first_id;
  const bool is_first = submitted.pass.id == generation.first_id;
  return generation.stream->Submit(std::move(pass),
                                   std::max(submitted.first_layer, is_first ? generation.first_layer : 0));
}

ReplayStream::Generation& ReplayStream::GenerationOf(std::uint64_t pass_id, std::int64_t layer) {
  auto it = std::prev(generations_.end());
  while (it != generations_.begin() && pass_id == it->first_id && layer < it->first_layer) --it;
  return *it;
}

absl::Status ReplayStream::Submit(TokenPass pass, std::int64_t first_layer) {
  QST_RETURN_IF_ERROR(broken_);
  if (pass.id != next_id_) {
    return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, " submitted, the next one is ", next_id_));
  }
  if (pass.uses_kv_cache) {
    return absl::InvalidArgumentError(
        absl::StrCat("pass ", pass.id, " uses a KV cache, which is lost with its stages: it cannot be repeated"));
  }
  in_flight_.push_back({std::move(pass), first_layer, first_layer});
  const absl::Status submitted = SubmitTo(current(), in_flight_.back());
  if (!submitted.ok() && !IsStageLoss(submitted)) {
    in_flight_.pop_back();
    return submitted;
  }
  ++next_id_;
  return submitted.ok() ? submitted : Recover(submitted);
}

absl::StatusOr<ConstMatrixView> ReplayStream::Wait(std::uint64_t pass_id, std::int64_t layer) {
  for (;;) {
    QST_RETURN_IF_ERROR(broken_);
    if (in_flight_.empty() || pass_id < in_flight_.front().pass.id || pass_id > in_flight_.back().pass.id) {
      return absl::FailedPreconditionError(absl::StrCat("waiting for pass ", pass_id, ", which is not in flight"));
    }
    Generation& generation = GenerationOf(pass_id, layer);
    absl::StatusOr<ConstMatrixView> states = generation.stream->Wait(pass_id - generation.first_id, layer);
    if (states.ok()) {
      generation.end_id = std::max(generation.end_id, pass_id + 1);
      Submitted& submitted = in_flight_[static_cast<std::size_t>(pass_id - in_flight_.front().pass.id)];
      if (layer == submitted.read_end) ++submitted.read_end;
    }
    if (states.ok() || !IsStageLoss(states.status())) return states;
    QST_RETURN_IF_ERROR(Recover(states.status()));
  }
}

absl::Status ReplayStream::Recover(absl::Status lost) {
  while (IsStageLoss(lost)) {
    {
      absl::MutexLock lock(&mutex_);
      if (!aborted_.ok()) lost = aborted_;
    }
    if (!IsStageLoss(lost)) break;
    lost = RecoverOnce(lost);
    if (lost.ok()) return lost;
  }
  broken_ = lost;
  return broken_;
}

absl::Status ReplayStream::RecoverOnce(const absl::Status& lost) {
  ++num_replays_;
  // Of the lost stream only what was read is needed still.
  current().stream->DropPending();
  QST_ASSIGN_OR_RETURN(std::shared_ptr<LiveStream> next, reconnect_(lost));
  const std::uint64_t first_id = in_flight_.empty() ? next_id_ : in_flight_.front().pass.id;
  // A pass goes through the stages to its end, whatever is left to be read of it.
  Begin(std::move(next), first_id, in_flight_.empty() ? 0 : std::min(in_flight_.front().read_end, num_layers_));
  Forget(first_id);
  for (const Submitted& submitted : in_flight_) QST_RETURN_IF_ERROR(SubmitTo(current(), submitted));
  return absl::OkStatus();
}

void ReplayStream::Forget(std::uint64_t first_needed_id) {
  const auto is_over = [&](const Generation& generation) { return generation.end_id <= first_needed_id; };
  for (auto it = generations_.begin(); it != std::prev(generations_.end());) {
    if (!is_over(*it)) {
      ++it;
      continue;
    }
    waiting_time_ += it->stream->waiting_time();
    it = generations_.erase(it);
  }
}

void ReplayStream::Release(std::uint64_t pass_id) {
  QST_CHECK(!in_flight_.empty() && in_flight_.front().pass.id == pass_id);
  in_flight_.pop_front();
  if (!broken_.ok()) return;
  current().stream->Release(pass_id - current().first_id);
  Forget(pass_id + 1);
}

void ReplayStream::Abort(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (aborted_.ok()) aborted_ = status;
  abortable_->Abort(status);
}

absl::Status ReplayStream::Finish() {
  QST_RETURN_IF_ERROR(broken_);
  return current().stream->Finish();
}

absl::Duration ReplayStream::waiting_time() const {
  absl::Duration all = waiting_time_;
  for (const Generation& generation : generations_) all += generation.stream->waiting_time();
  return all;
}

}  // namespace qst
