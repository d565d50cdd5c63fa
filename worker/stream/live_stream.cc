#include "worker/stream/live_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/stream/frame.h"

namespace qst {

absl::StatusOr<std::unique_ptr<LiveStream>> LiveStream::Create(Transport& transport, LiveStreamOptions options) {
  const int num_stages = static_cast<int>(options.stages.size());
  if (num_stages == 0 || transport.world_size() != num_stages + 1 || transport.rank() != num_stages) {
    return absl::InvalidArgumentError(absl::StrCat("hidden-state stream: ", num_stages, " stages, but rank ",
                                                   transport.rank(), " of ", transport.world_size()));
  }
  QST_RETURN_IF_ERROR(WireDtypeCode(options.wire_dtype).status());
  std::int64_t num_layers = 0;
  for (const StageRange& stage : options.stages) {
    if (stage.first_layer != num_layers || stage.num_layers < 1) {
      return absl::InvalidArgumentError(absl::StrCat("hidden-state stream: a stage has layers ", stage.first_layer,
                                                     " and ", stage.num_layers, " more, expected to begin at ",
                                                     num_layers));
    }
    num_layers += stage.num_layers;
  }
  if (options.hidden_size < 1 || options.max_pass_tokens < 1 || options.max_passes_in_flight < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden-state stream: hidden size ", options.hidden_size, ", ", options.max_pass_tokens,
                     " tokens a pass, ", options.max_passes_in_flight, " passes in flight; all must be at least 1"));
  }
  return std::unique_ptr<LiveStream>(new LiveStream(transport, std::move(options), num_layers));
}

LiveStream::LiveStream(Transport& transport, LiveStreamOptions options, std::int64_t num_layers)
    : transport_(transport),
      options_(std::move(options)),
      num_layers_(num_layers),
      pool_(BufferPool::Create()),
      states_pool_(BufferPool::Create(options_.ctx)) {
  owners_.push_back(0);
  for (std::size_t i = 0; i < options_.stages.size(); ++i) {
    owners_.insert(owners_.end(), static_cast<std::size_t>(options_.stages[i].num_layers), static_cast<int>(i));
  }
}

LiveStream::~LiveStream() {
  for (InFlight& entry : in_flight_) EndUse(entry);
}

absl::StatusOr<SharedBuffer> LiveStream::Take(SharedBuffer buffer) {
  if (options_.ctx.device == DeviceType::kCpu || buffer->is_on_device()) {
    QST_RETURN_IF_ERROR(buffer->BeginUse(options_.ctx));
    return buffer;
  }
  const std::int64_t bytes = static_cast<std::int64_t>(buffer->size());
  QST_ASSIGN_OR_RETURN(SharedBuffer on_device, states_pool_->Get(bytes));
  QST_RETURN_IF_ERROR(on_device->BeginUse(options_.ctx));
  QST_RETURN_IF_ERROR(Upload(options_.ctx, buffer->data(), bytes, on_device->data()));
  return on_device;
}

void LiveStream::EndUse(InFlight& entry) {
  for (const SharedBuffer& states : entry.states) {
    // A GPU that fails here fails the next op as well, and that is reported.
    if (states != nullptr) states->EndUse(options_.ctx).IgnoreError();
  }
}

absl::Status LiveStream::Submit(TokenPass pass, std::int64_t first_layer) {
  if (pass.id != next_id_) {
    return absl::InvalidArgumentError(absl::StrCat("pass ", pass.id, " submitted, the next one is ", next_id_));
  }
  if (first_layer < 0 || first_layer > num_layers_) {
    return absl::InvalidArgumentError(
        absl::StrCat("pass ", pass.id, ": states from layer ", first_layer, " of ", num_layers_));
  }
  QST_RETURN_IF_ERROR(CheckPass(pass, options_.max_pass_tokens));
  if (static_cast<std::int64_t>(in_flight_.size()) >= options_.max_passes_in_flight) {
    return absl::FailedPreconditionError(absl::StrCat("pass ", pass.id, " submitted with ", in_flight_.size(),
                                                      " passes in flight already; release one first"));
  }
  // States that nobody waited for are taken and dropped when they have come, so that their memory returns.
  while (!abandoned_.empty() && !absl::IsDeadlineExceeded(abandoned_.front()->Wait(absl::ZeroDuration()).status())) {
    abandoned_.pop_front();
  }
  InFlight entry;
  entry.id = pass.id;
  entry.num_tokens = pass.num_tokens();
  entry.first_layer = first_layer;
  // Receives before tokens: a stage that is quick finds them posted.
  for (std::int64_t layer = first_layer; layer <= num_layers_; ++layer) {
    const int owner = OwnerOf(layer);
    const Tag tag = MakeTag(FrameKind::kHiddenStates, pass.id, layer);
    const std::int64_t bytes =
        WireBytes(LayerWireDtype(options_.wire_dtype, layer, num_layers_), entry.num_tokens, options_.hidden_size);
    const bool is_on_device = options_.ctx.device == DeviceType::kCuda && transport_.CarriesDeviceMemory(owner);
    QST_ASSIGN_OR_RETURN(auto pending, is_on_device ? transport_.ReceiveOnDevice(owner, tag, bytes)
                                                    : transport_.Receive(owner, tag, bytes));
    entry.pending.push_back(std::move(pending));
  }
  entry.states.resize(entry.pending.size());

  PassHeader header;
  header.uses_kv_cache = pass.uses_kv_cache;
  header.pass_id = pass.id;
  header.num_tokens = static_cast<std::uint32_t>(pass.num_tokens());
  header.num_sequences = static_cast<std::uint32_t>(pass.num_sequences());
  header.first_layer = static_cast<std::uint32_t>(first_layer);
  header.past_tokens = static_cast<std::uint32_t>(pass.past_tokens);
  header.hidden_size = static_cast<std::uint32_t>(options_.hidden_size);
  header.wire_dtype = options_.wire_dtype;
  for (int stage = 0; stage < static_cast<int>(options_.stages.size()); ++stage) {
    // A buffer of its own for each stage: in process it becomes the receiver's.
    QST_ASSIGN_OR_RETURN(SharedBuffer head, pool_->Get(kHeaderBytes));
    QST_ASSIGN_OR_RETURN(SharedBuffer tokens, pool_->Get(TokensBytes(header.num_tokens, header.num_sequences)));
    EncodeHeader(header, head->data());
    EncodeTokens(pass, tokens->data());
    QST_RETURN_IF_ERROR(transport_.Send(stage, MakeTag(FrameKind::kHeader, pass.id), std::move(head)));
    QST_RETURN_IF_ERROR(transport_.Send(stage, MakeTag(FrameKind::kTokens, pass.id), std::move(tokens)));
  }
  in_flight_.push_back(std::move(entry));
  ++next_id_;
  return absl::OkStatus();
}

absl::StatusOr<ConstMatrixView> LiveStream::Wait(std::uint64_t pass_id, std::int64_t layer) {
  if (in_flight_.empty() || pass_id < in_flight_.front().id || pass_id > in_flight_.back().id) {
    return absl::FailedPreconditionError(absl::StrCat("waiting for pass ", pass_id, ", which is not in flight"));
  }
  InFlight& entry = in_flight_[static_cast<std::size_t>(pass_id - in_flight_.front().id)];
  if (layer < entry.first_layer || layer > num_layers_) {
    return absl::InvalidArgumentError(absl::StrCat("pass ", pass_id, " was asked for layers ", entry.first_layer,
                                                   " to ", num_layers_, ", not ", layer));
  }
  const std::size_t index = static_cast<std::size_t>(layer - entry.first_layer);
  if (entry.states[index] == nullptr) {
    if (entry.pending[index] == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("waiting for pass ", pass_id, ", layer ", layer,
                                                        ", which was given up"));
    }
    const absl::Time start = absl::Now();
    // Without a limit: an evaluation or a slow stage may take its time. A lost peer or an abort ends it.
    absl::StatusOr<SharedBuffer> states = entry.pending[index]->Wait(absl::InfiniteDuration());
    waiting_time_ += absl::Now() - start;
    QST_RETURN_IF_ERROR(states.status());
    QST_ASSIGN_OR_RETURN(SharedBuffer taken, Take(*std::move(states)));
    if (HasRowScales(LayerWireDtype(options_.wire_dtype, layer, num_layers_))) {
      QST_ASSIGN_OR_RETURN(taken, Decode(std::move(taken), entry.num_tokens));
    }
    entry.states[index] = std::move(taken);
    entry.pending[index].reset();
  }
  const DType dtype = HasRowScales(options_.wire_dtype) ? DType::kBF16 : options_.wire_dtype;
  return ConstMatrixView(entry.states[index]->data(), dtype, entry.num_tokens, options_.hidden_size,
                         options_.hidden_size);
}

absl::StatusOr<SharedBuffer> LiveStream::Decode(SharedBuffer encoded, std::int64_t num_tokens) {
  const std::int64_t width = options_.hidden_size;
  QST_ASSIGN_OR_RETURN(SharedBuffer decoded, states_pool_->Get(WireBytes(DType::kBF16, num_tokens, width)));
  const MatrixView view{decoded->data(), DType::kBF16, num_tokens, width, width};
  QST_RETURN_IF_ERROR(decoded->BeginUse(options_.ctx));
  QST_RETURN_IF_ERROR(DecodeRows(options_.ctx, encoded->data(), options_.wire_dtype, view));
  QST_RETURN_IF_ERROR(encoded->EndUse(options_.ctx));
  return decoded;
}

std::int64_t LiveStream::StateBytes(const LiveStreamOptions& options, std::int64_t first_layer,
                                    std::int64_t num_layers) {
  std::int64_t travelling = 0;
  std::int64_t decoded = 0;
  for (std::int64_t layer = first_layer; layer <= num_layers; ++layer) {
    const DType wire = LayerWireDtype(options.wire_dtype, layer, num_layers);
    travelling += WireBytes(wire, options.max_pass_tokens, options.hidden_size);
    if (HasRowScales(wire)) decoded += WireBytes(DType::kBF16, options.max_pass_tokens, options.hidden_size);
  }
  // Only the pass that is read is decoded, layer by layer.
  return options.max_passes_in_flight * travelling + decoded;
}

void LiveStream::Release(std::uint64_t pass_id) {
  QST_CHECK(!in_flight_.empty() && in_flight_.front().id == pass_id);
  EndUse(in_flight_.front());
  for (std::unique_ptr<PendingReceive>& pending : in_flight_.front().pending) {
    if (pending != nullptr) abandoned_.push_back(std::move(pending));
  }
  in_flight_.pop_front();
}

void LiveStream::DropPending() {
  for (InFlight& entry : in_flight_) {
    for (std::unique_ptr<PendingReceive>& pending : entry.pending) pending.reset();
  }
  abandoned_.clear();
  states_pool_->KeepNone();
  transport_.KeepNoBuffers();
}

absl::Status LiveStream::Finish() {
  PassHeader header;
  header.is_stop = true;
  header.pass_id = next_id_;
  for (int stage = 0; stage < static_cast<int>(options_.stages.size()); ++stage) {
    QST_ASSIGN_OR_RETURN(SharedBuffer head, pool_->Get(kHeaderBytes));
    EncodeHeader(header, head->data());
    QST_RETURN_IF_ERROR(transport_.Send(stage, MakeTag(FrameKind::kHeader, next_id_), std::move(head)));
  }
  return absl::OkStatus();
}

}  // namespace qst
