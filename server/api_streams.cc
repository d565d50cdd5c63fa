// Streams of the public API that follow something in the domain: a job's events, a model's import, generated text.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/support/status_macros.h"
#include "server/api_deadline.h"
#include "server/api_service.h"
#include "server/stream_reactor.h"

namespace qst {
namespace {

absl::Status Stopped() { return absl::UnavailableError("the coordinator is shutting down; try again later"); }

}  // namespace

grpc::ServerWriteReactor<v1::WatchJobResponse>* ApiService::WatchJob(grpc::CallbackServerContext* /*context*/,
                                                                     const v1::WatchJobRequest* request) {
  // Lives on the control loop.
  struct State {
    std::uint64_t after_sequence;
    std::uint64_t waiter = 0;
    bool is_done = false;
  };
  auto* reactor = new StreamReactor<v1::WatchJobResponse>();
  auto state = std::make_shared<State>();
  state->after_sequence = request->after_sequence();
  const auto handle = reactor->handle();
  const auto on_batch = [state, handle](absl::StatusOr<JobEventBatch> batch) {
    state->waiter = 0;
    if (!batch.ok()) {
      handle->Deliver({}, batch.status());
      return;
    }
    std::vector<v1::WatchJobResponse> responses;
    for (v1::JobEvent& event : batch->events) {
      if (event.sequence() > 0) state->after_sequence = event.sequence();
      *responses.emplace_back().mutable_event() = std::move(event);
    }
    handle->Deliver(std::move(responses), batch->is_over ? std::optional(absl::OkStatus()) : std::nullopt);
  };
  const auto fetch = [this, state, handle, on_batch, job_id = request->job_id()] {
    const bool is_posted = loop_->Post([this, state, handle, on_batch, job_id] {
      if (state->is_done) return;
      const absl::Status accepting = coordinator_->CheckAccepting();
      if (!accepting.ok()) {
        handle->Deliver({}, accepting);
        return;
      }
      state->waiter = coordinator_->jobs().watchers()->Wait(job_id, state->after_sequence, on_batch);
    });
    if (!is_posted) handle->Deliver({}, Stopped());
  };
  const auto on_done = [this, state] {
    loop_->Post([this, state] {
      state->is_done = true;
      if (state->waiter != 0) coordinator_->jobs().watchers()->Forget(state->waiter);
    });
  };
  reactor->Begin(fetch, on_done);
  return reactor;
}

grpc::ServerWriteReactor<v1::WatchModelResponse>* ApiService::WatchModel(grpc::CallbackServerContext* /*context*/,
                                                                         const v1::WatchModelRequest* request) {
  struct State {
    std::uint64_t seen_version = 0;
    std::uint64_t waiter = 0;
    bool is_done = false;
  };
  auto* reactor = new StreamReactor<v1::WatchModelResponse>();
  auto state = std::make_shared<State>();
  const auto handle = reactor->handle();
  const auto on_model = [state, handle](absl::StatusOr<v1::Model> model, std::uint64_t version) {
    state->waiter = 0;
    state->seen_version = version;
    if (!model.ok()) {
      handle->Deliver({}, model.status());
      return;
    }
    const bool is_over = model->state() != v1::MODEL_STATE_IMPORTING;
    std::vector<v1::WatchModelResponse> responses(1);
    *responses[0].mutable_model() = *std::move(model);
    handle->Deliver(std::move(responses), is_over ? std::optional(absl::OkStatus()) : std::nullopt);
  };
  const auto fetch = [this, state, handle, on_model, name = request->name()] {
    const bool is_posted = loop_->Post([this, state, handle, on_model, name] {
      if (state->is_done) return;
      const absl::Status accepting = coordinator_->CheckAccepting();
      if (!accepting.ok()) {
        handle->Deliver({}, accepting);
        return;
      }
      state->waiter = coordinator_->models().Wait(name, state->seen_version, on_model);
    });
    if (!is_posted) handle->Deliver({}, Stopped());
  };
  const auto on_done = [this, state] {
    loop_->Post([this, state] {
      state->is_done = true;
      if (state->waiter != 0) coordinator_->models().Forget(state->waiter);
    });
  };
  reactor->Begin(fetch, on_done);
  return reactor;
}

grpc::ServerWriteReactor<v1::GenerateResponse>* ApiService::Generate(grpc::CallbackServerContext* context,
                                                                     const v1::GenerateRequest* request) {
  struct State {
    std::string id;
    bool is_done = false;
  };
  auto* reactor = new StreamReactor<v1::GenerateResponse>();
  auto state = std::make_shared<State>();
  const auto handle = reactor->handle();
  const auto on_done = [this, state] {
    loop_->Post([this, state] {
      state->is_done = true;
      if (!state->id.empty()) coordinator_->generations().Cancel(state->id);
    });
  };
  reactor->Begin(nullptr, on_done);
  const absl::Time deadline = DeadlineOf(*context, loop_->Now());
  const bool is_posted = loop_->Post([this, state, handle, deadline, request = *request] {
    if (state->is_done) return;
    GenerateManager::Callbacks callbacks;
    callbacks.on_response = [handle](const v1::GenerateResponse& response) { handle->Deliver({response}); };
    callbacks.on_done = [handle](const absl::Status& status) { handle->Deliver({}, status); };
    absl::Status status = coordinator_->CheckAccepting();
    if (status.ok()) {
      absl::StatusOr<std::string> id = coordinator_->generations().Start(request, deadline, std::move(callbacks));
      if (id.ok()) state->id = *std::move(id);
      status = id.status();
    }
    if (!status.ok()) handle->Deliver({}, status);
  });
  if (!is_posted) handle->Deliver({}, Stopped());
  return reactor;
}

}  // namespace qst
