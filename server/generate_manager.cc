#include "server/generate_manager.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "server/job_spec_defaults.h"
#include "server/job_state.h"
#include "server/log.h"
#include "server/placement.h"

namespace qst {
namespace {

constexpr std::uint32_t kDefaultNewTokens = 128;
constexpr std::uint32_t kMaxNewTokens = 1 << 16;
constexpr std::size_t kMaxPromptBytes = 1 << 20;
constexpr absl::Duration kLongestWait = absl::Minutes(1);
// Left of the client's time to tell it why nothing came.
constexpr absl::Duration kTimeToAnswer = absl::Milliseconds(300);
// A token has at least one byte of text; what templates and special tokens add fits in here.
constexpr std::uint32_t kTemplateTokens = 1024;

absl::Status CheckRequest(const v1::GenerateRequest& request) {
  if (request.model().empty() && request.job_id().empty()) {
    return absl::InvalidArgumentError("model: is required unless job_id is given");
  }
  if (request.prompt().size() > kMaxPromptBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt: must be at most ", kMaxPromptBytes, " bytes, is ", request.prompt().size()));
  }
  if (request.max_new_tokens() > kMaxNewTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens: must be at most ", kMaxNewTokens, ", is ", request.max_new_tokens()));
  }
  if (!std::isfinite(request.temperature()) || request.temperature() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("temperature: must be at least 0, is ", request.temperature()));
  }
  return ValidateResources(request.resources(), "resources");
}

}  // namespace

GenerateManager::GenerateManager(Executor* executor, JobStore* store, WorkerRegistry* registry, Rendezvous* rendezvous,
                                 ModelManager* models, StoreLayout layout)
    : executor_(executor),
      store_(store),
      registry_(registry),
      rendezvous_(rendezvous),
      models_(models),
      layout_(std::move(layout)) {}

absl::StatusOr<std::string> GenerateManager::Start(const v1::GenerateRequest& request, absl::Time deadline,
                                                   Callbacks callbacks) {
  QST_RETURN_IF_ERROR(CheckRequest(request));
  Generation generation;
  generation.request = request;
  if (!request.job_id().empty()) {
    const absl::StatusOr<JobRecord> job = store_->GetJob(request.job_id());
    if (absl::IsNotFound(job.status())) {
      return absl::NotFoundError(absl::StrCat("job_id: no job '", request.job_id(), "'; see `qst jobs`"));
    }
    QST_RETURN_IF_ERROR(job.status());
    if (job->job.state() != v1::JOB_STATE_SUCCEEDED) {
      return absl::FailedPreconditionError(absl::StrCat("job_id: job ", request.job_id(), " is ",
                                                        JobStateName(job->job.state()),
                                                        "; only a SUCCEEDED job has a side network to use"));
    }
    const std::string& model = job->job.spec().model();
    if (!request.model().empty() && request.model() != model) {
      return absl::InvalidArgumentError(absl::StrCat("model: job ", request.job_id(), " was trained on '", model,
                                                     "', not on '", request.model(), "'"));
    }
    generation.request.set_model(model);
    generation.trained = job->job.spec();
    generation.side_network_path = layout_.ResultsPath(request.job_id());
  }
  v1::GenerateRequest& filled = generation.request;
  if (filled.max_new_tokens() == 0) filled.set_max_new_tokens(kDefaultNewTokens);
  if (filled.wire_dtype() == v1::WIRE_DTYPE_UNSPECIFIED) filled.set_wire_dtype(v1::WIRE_DTYPE_F32);
  const absl::StatusOr<v1::Model> model = models_->GetReady(filled.model());
  if (!model.ok()) return Annotate(model.status(), "model");
  if (filled.resources().stages() > model->num_layers()) {
    return absl::InvalidArgumentError(absl::StrCat("resources.stages: must be at most the model's ",
                                                   model->num_layers(), " layers, is ", filled.resources().stages()));
  }

  generation.callbacks = std::move(callbacks);
  do {
    generation.id = "g-" + RandomHex(8);
  } while (generations_.count(generation.id) > 0);
  const std::string id = generation.id;
  generations_.emplace(id, std::move(generation));
  queue_.push_back(id);
  const absl::Duration patience = std::min(deadline - executor_->Now() - kTimeToAnswer, kLongestWait);
  executor_->PostAfter(patience, [this, id] {
    const auto found = generations_.find(id);
    if (found == generations_.end() || found->second.plan.has_value()) return;
    Finish(id, absl::ResourceExhaustedError(found->second.waits_for));
  });
  Schedule();
  return id;
}

void GenerateManager::Cancel(const std::string& id) {
  const auto found = generations_.find(id);
  if (found == generations_.end()) return;
  found->second.callbacks.on_done = nullptr;
  Finish(id, absl::CancelledError("cancelled by the client"));
}

void GenerateManager::EndAll(const absl::Status& status) {
  std::vector<std::string> ids;
  for (const auto& [id, generation] : generations_) ids.push_back(id);
  for (const std::string& id : ids) Finish(id, status);
}

bool GenerateManager::UsesModel(const std::string& name) const {
  return std::any_of(generations_.begin(), generations_.end(),
                     [&](const auto& entry) { return entry.second.request.model() == name; });
}

void GenerateManager::Schedule() {
  while (!queue_.empty()) {
    const auto found = generations_.find(queue_.front());
    if (found != generations_.end() && !TryPlace(&found->second)) return;
    if (!queue_.empty()) queue_.pop_front();
  }
}

bool GenerateManager::TryPlace(Generation* generation) {
  const std::string& model_name = generation->request.model();
  if (models_->IsBeingReplaced(model_name)) {
    generation->waits_for = absl::StrCat("waited for model '", model_name, "', which is being replaced");
    return false;
  }
  const absl::StatusOr<v1::Model> model = models_->GetReady(model_name);
  if (!model.ok()) {
    const std::string id = generation->id;
    executor_->Post([this, id, status = model.status()] { Finish(id, status); });
    return true;
  }
  const std::uint32_t most_tokens = static_cast<std::uint32_t>(generation->request.prompt().size()) + kTemplateTokens +
                                    generation->request.max_new_tokens();
  const v1::JobSpec* trained = generation->trained.has_value() ? &*generation->trained : nullptr;
  const PlacementDecision decision =
      Place({generation->request.resources(), *model, LoadOfGeneration(generation->request, trained, most_tokens)},
            registry_->Offers());
  if (!decision.is_placed) {
    generation->waits_for = absl::StrCat("gave up ", decision.message);
    return false;
  }
  v1::JobPlan plan;
  plan.set_job_id(generation->id);
  plan.set_plan_id(generation->id + "/1");
  CopyPlacement(decision.placement, &plan);
  plan.set_model_path(layout_.ModelPath(model_name));
  plan.set_wire_dtype(generation->request.wire_dtype());
  // The side network has learned so.
  if (trained != nullptr) {
    plan.set_compute_dtype(trained->train().dtype());
    plan.set_side_tf32(trained->train().tf32());
  }
  plan.set_max_passes_in_flight(1);
  plan.set_max_sequence_tokens(most_tokens);
  plan.set_backbone_batch_tokens(most_tokens);
  plan.set_uses_kv_cache(true);
  v1::HostPart side_work;
  *side_work.mutable_generate()->mutable_request() = generation->request;
  side_work.mutable_generate()->set_side_network_path(generation->side_network_path);
  v1::DataConfig* data = side_work.mutable_generate()->mutable_data();
  data->set_template_(generation->request.template_());
  if (trained != nullptr && (data->template_() == "auto" || data->template_() == "custom")) {
    const bool is_auto = data->template_() == "auto";
    if (is_auto) data->set_template_(trained->data().template_());
    if (trained->data().has_custom_template()) *data->mutable_custom_template() = trained->data().custom_template();
  }
  generation->plan.emplace(std::move(plan), std::move(side_work));
  rendezvous_->Open(generation->plan->id());
  LogInfo(absl::StrCat("generation ", generation->id, ": placed: ", decision.message, "; model ", model_name));
  generation->plan->Start(registry_);
  return true;
}

void GenerateManager::Finish(const std::string& id, const absl::Status& status) {
  auto node = generations_.extract(id);
  if (node.empty()) return;
  Generation& generation = node.mapped();
  LogInfo(absl::StrCat("generation ", id, ": ", status.ok() ? "done" : status.ToString()));
  queue_.erase(std::remove(queue_.begin(), queue_.end(), id), queue_.end());
  if (generation.plan.has_value()) {
    rendezvous_->Close(generation.plan->id());
    registry_->ReleasePlan(generation.plan->id());
  }
  if (generation.callbacks.on_done) generation.callbacks.on_done(status);
}

GenerateManager::Generation* GenerateManager::FindPlan(const std::string& plan_id) {
  for (auto& [id, generation] : generations_) {
    if (generation.plan.has_value() && generation.plan->id() == plan_id) return &generation;
  }
  return nullptr;
}

bool GenerateManager::OwnsPlan(const std::string& plan_id) const {
  return const_cast<GenerateManager*>(this)->FindPlan(plan_id) != nullptr;
}

void GenerateManager::OnPartReport(const std::string& worker_id, const v1::PartReport& report) {
  Generation* generation = FindPlan(report.part().plan_id());
  if (generation == nullptr) return;
  PlanPart* part = generation->plan->Find(worker_id, report.part());
  if (part == nullptr) return;
  if (report.state() == v1::PART_STATE_READY) part->phase = PartPhase::kReady;
  if (report.state() == v1::PART_STATE_LOADING) part->phase = PartPhase::kLoading;
  if (report.state() != v1::PART_STATE_FAILED) return;
  const absl::StatusCode code =
      report.code() == 0 ? absl::StatusCode::kInternal : static_cast<absl::StatusCode>(report.code());
  Finish(generation->id,
         absl::Status(code, absl::StrCat(PartName(report.part().is_side(), report.part().stage()), " on ",
                                         registry_->Describe(worker_id), ": ", report.message())));
}

void GenerateManager::OnReport(const std::string& worker_id, const v1::GenerateReport& report) {
  const auto found = generations_.find(report.job_id());
  if (found == generations_.end() || !found->second.plan.has_value() ||
      found->second.plan->side_worker_id() != worker_id) {
    return;
  }
  if (report.code() != 0) {
    Finish(report.job_id(), absl::Status(static_cast<absl::StatusCode>(report.code()), report.message()));
    return;
  }
  found->second.callbacks.on_response(report.response());
  if (!report.response().finish_reason().empty()) Finish(report.job_id(), absl::OkStatus());
}

void GenerateManager::OnWorkerLost(const std::string& worker_id, const std::string& plan_id,
                                   const std::string& reason) {
  Generation* generation = FindPlan(plan_id);
  if (generation == nullptr) return;
  Finish(generation->id,
         absl::UnavailableError(absl::StrCat(registry_->Describe(worker_id), ", hosting ",
                                             generation->plan->PartsOf(worker_id), ", was lost: ", reason)));
}

void GenerateManager::OnHello(const v1::Hello& hello) {
  std::vector<std::string> ended;
  for (auto& [id, generation] : generations_) {
    if (!generation.plan.has_value()) continue;
    for (const PlanPart& part : generation.plan->parts()) {
      if (part.worker_id != hello.worker_id()) continue;
      const bool is_hosted =
          std::any_of(hello.hosted().begin(), hello.hosted().end(), [&](const v1::HostedPart& hosted) {
            return hosted.plan_id() == generation.plan->id() &&
                   generation.plan->Find(hello.worker_id(), hosted) == &part;
          });
      if (!is_hosted || part.id.is_side()) {
        ended.push_back(id);
        break;
      }
    }
  }
  for (const std::string& id : ended) {
    Finish(id, absl::UnavailableError(
                   absl::StrCat(registry_->Describe(hello.worker_id()), " lost its connection; try again")));
  }
}

}  // namespace qst
