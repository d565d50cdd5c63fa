#include "worker/train/testing/fake_hidden_state_stream.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"
#include "worker/side/random.h"

namespace qst {

FakeHiddenStateStream::FakeHiddenStateStream(const Options& options)
    : options_(options), lowest_layer_asked_(options.num_layers + 1) {
  for (std::int64_t layer = 0; layer <= options_.num_layers; ++layer) {
    Random random(99, absl::StrCat("layer ", layer));
    std::vector<float> table(options_.vocab_size * options_.hidden_size);
    for (float& value : table) value = random.Symmetric(1.5f);
    tables_.push_back(std::move(table));
  }
}

absl::Status FakeHiddenStateStream::Submit(TokenPass pass, std::int64_t first_layer) {
  if (!aborted_.ok()) return aborted_;
  if (pass.id != next_id_) return absl::InvalidArgumentError("pass out of order");
  if (pass.tokens.empty() || pass.offsets.back() != pass.num_tokens()) {
    return absl::InvalidArgumentError("offsets do not cover the tokens");
  }
  if (static_cast<std::int64_t>(in_flight_.size()) >= options_.max_passes_in_flight) {
    return absl::FailedPreconditionError("no credit left");
  }
  ++next_id_;
  longest_pass_tokens_ = std::max(longest_pass_tokens_, pass.num_tokens());
  Pass made;
  made.first_layer = first_layer;
  const std::int64_t d = options_.hidden_size;
  for (std::int64_t layer = 0; layer <= options_.num_layers; ++layer) {
    std::vector<std::uint16_t> states(pass.num_tokens() * d);
    for (std::int64_t s = 0; s < pass.num_sequences(); ++s) {
      for (std::int64_t t = pass.offsets[s]; t < pass.offsets[s + 1]; ++t) {
        for (std::int64_t j = 0; j < d; ++j) {
          float value = tables_[layer][pass.tokens[t] * d + j];
          if (t > pass.offsets[s]) value += 0.25f * tables_[layer][pass.tokens[t - 1] * d + j];
          if (layer == options_.nan_layer && pass.id >= options_.nan_from_pass) value = NAN;
          states[t * d + j] = F32ToBF16(value);
        }
      }
    }
    QST_ASSIGN_OR_RETURN(DeviceMemory memory,
                         DeviceMemory::CopyOf(options_.ctx, states.data(),
                                              static_cast<std::int64_t>(states.size() * sizeof(std::uint16_t))));
    made.states.push_back(std::move(memory));
  }
  made.tokens = std::move(pass);
  in_flight_.push_back(std::move(made));
  return absl::OkStatus();
}

absl::StatusOr<ConstMatrixView> FakeHiddenStateStream::Wait(std::uint64_t pass_id, std::int64_t layer) {
  if (!aborted_.ok()) return aborted_;
  if (options_.lost_at_pass && pass_id >= *options_.lost_at_pass) return absl::UnavailableError("stage 1 was lost");
  lowest_layer_asked_ = std::min(lowest_layer_asked_, layer);
  for (const Pass& pass : in_flight_) {
    if (pass.tokens.id != pass_id) continue;
    if (layer < pass.first_layer || layer > options_.num_layers) return absl::InvalidArgumentError("layer not sent");
    return ConstMatrixView(pass.states[layer].data(), DType::kBF16, pass.tokens.num_tokens(), options_.hidden_size,
                           options_.hidden_size);
  }
  return absl::FailedPreconditionError(absl::StrCat("pass ", pass_id, " is not in flight"));
}

void FakeHiddenStateStream::Release(std::uint64_t pass_id) {
  if (!in_flight_.empty() && in_flight_.front().tokens.id == pass_id) {
    // A GPU may not have read them yet.
    if (aborted_.ok()) aborted_ = Synchronize(options_.ctx);
    in_flight_.pop_front();
    return;
  }
  aborted_ = absl::FailedPreconditionError(absl::StrCat("pass ", pass_id, " released out of order"));
}

}  // namespace qst
