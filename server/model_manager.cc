#include "server/model_manager.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "server/job_spec_defaults.h"
#include "server/log.h"
#include "server/placement.h"

namespace qst {
namespace {

// Importers report every fraction of a second.
constexpr absl::Duration kSilentImport = absl::Seconds(5);

absl::Status NoSuchModel(const std::string& name) {
  return absl::NotFoundError(absl::StrCat("no model '", name, "' in the store; see `qst model list`"));
}

bool IsImporting(const ModelRecord& record) {
  return record.pending.has_value() && record.pending->state() == v1::MODEL_STATE_IMPORTING;
}

// What people see: the usable model if there is one, else the import.
const v1::Model& Shown(const ModelRecord& record) {
  if (IsImporting(record) || !record.ready.has_value()) return *record.pending;
  return *record.ready;
}

}  // namespace

ModelManager::ModelManager(Executor* executor, JobStore* store, WorkerRegistry* registry, StoreLayout layout,
                           absl::Duration recover_grace)
    : executor_(executor),
      store_(store),
      registry_(registry),
      layout_(std::move(layout)),
      recover_grace_(recover_grace) {}

absl::Status ModelManager::Recover() {
  QST_ASSIGN_OR_RETURN(std::vector<ModelRecord> records, store_->ListModels());
  std::sort(records.begin(), records.end(), [](const ModelRecord& a, const ModelRecord& b) {
    return (a.pending.has_value() ? a.pending->created_ms() : 0) <
           (b.pending.has_value() ? b.pending->created_ms() : 0);
  });
  std::vector<std::string> pending_paths;
  for (const ModelRecord& record : records) pending_paths.push_back(record.pending_path);
  RemoveStaleModelFolders(layout_, pending_paths);
  for (const ModelRecord& record : records) {
    if (!IsImporting(record)) continue;
    replacing_[record.name] = record.ready.has_value();
    if (record.pending_worker_id.empty()) {
      queue_.push_back(record.name);
    } else {
      recovered_[record.name] = record.pending_worker_id;
    }
  }
  if (!recovered_.empty()) executor_->PostAfter(recover_grace_, [this] { GiveUpRecovered(); });
  return absl::OkStatus();
}

void ModelManager::GiveUpRecovered() {
  for (const auto& [name, worker_id] : std::exchange(recovered_, {})) {
    if (registry_->ImportOf(worker_id) == name) registry_->SetImport(worker_id, "");
    auto record = Find(name);
    if (!record.ok()) continue;
    const absl::Status status =
        Fail(*std::move(record), absl::StrCat("the coordinator restarted and worker ", worker_id,
                                              " did not go on with the import; start it again"));
    if (!status.ok()) LogError(absl::StrCat("model ", name, ": ", status.ToString()));
  }
}

absl::StatusOr<ModelRecord> ModelManager::Find(const std::string& name) {
  QST_ASSIGN_OR_RETURN(std::optional<ModelRecord> record, store_->FindModel(name));
  if (!record.has_value()) return NoSuchModel(name);
  return *std::move(record);
}

absl::StatusOr<v1::Model> ModelManager::Import(const v1::ImportModelRequest& request) {
  QST_RETURN_IF_ERROR(ValidateName(request.name(), "name"));
  if (request.source_path().empty()) {
    return absl::InvalidArgumentError("source_path: is required: a Hugging Face folder, or a GGUF or llama2.c file");
  }
  if (request.source_path().front() != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("source_path: must be absolute, since a worker reads it, is '", request.source_path(), "'"));
  }
  // Only checked: what the request leaves open, the model itself may say (weights that come in 4 bit).
  v1::Quantization resolved = request.quantization();
  QST_RETURN_IF_ERROR(ResolveQuantization(&resolved));
  QST_ASSIGN_OR_RETURN(std::optional<ModelRecord> known, store_->FindModel(request.name()));
  ModelRecord record;
  if (known.has_value()) {
    if (IsImporting(*known)) {
      return absl::AlreadyExistsError(absl::StrCat("model '", request.name(), "' is being imported already"));
    }
    if (known->ready.has_value()) {
      if (!request.replace()) {
        return absl::AlreadyExistsError(
            absl::StrCat("model '", request.name(), "' exists; choose another name or replace it"));
      }
      if (in_use_ && in_use_(request.name())) {
        return absl::FailedPreconditionError(
            absl::StrCat("model '", request.name(), "' is used by a job that is not over; cancel or await it first"));
      }
      record.ready = known->ready;
    }
  }
  record.name = request.name();
  record.pending_path = layout_.NewImportPath(request.name());
  v1::Model& pending = record.pending.emplace();
  pending.set_name(request.name());
  pending.set_state(v1::MODEL_STATE_IMPORTING);
  pending.set_status_message("waiting for an idle worker");
  pending.set_source_path(request.source_path());
  *pending.mutable_quantization() = request.quantization();
  pending.set_created_ms(absl::ToUnixMillis(executor_->Now()));
  QST_RETURN_IF_ERROR(Save(record));
  replacing_[record.name] = record.ready.has_value();
  queue_.push_back(record.name);
  LogInfo(absl::StrCat("model ", record.name, ": import of ", request.source_path(), " accepted"));
  Schedule();
  return Get(request.name());
}

absl::StatusOr<v1::Model> ModelManager::Get(const std::string& name) {
  QST_ASSIGN_OR_RETURN(const ModelRecord record, Find(name));
  return Shown(record);
}

absl::StatusOr<std::vector<v1::Model>> ModelManager::List() {
  QST_ASSIGN_OR_RETURN(const std::vector<ModelRecord> records, store_->ListModels());
  std::vector<v1::Model> models;
  for (const ModelRecord& record : records) {
    models.push_back(Shown(record));
    models.back().clear_layers();  // too much for a list
  }
  return models;
}

absl::Status ModelManager::Delete(const std::string& name) {
  QST_ASSIGN_OR_RETURN(const ModelRecord record, Find(name));
  if (in_use_ && in_use_(name)) {
    return absl::FailedPreconditionError(
        absl::StrCat("model '", name, "' is used by a job that is not over; cancel or await it first"));
  }
  QST_RETURN_IF_ERROR(store_->DeleteModel(name));
  queue_.erase(std::remove(queue_.begin(), queue_.end(), name), queue_.end());
  recovered_.erase(name);
  replacing_.erase(name);
  if (IsImporting(record) && !record.pending_worker_id.empty()) {
    // The worker stays busy until it reports that it has stopped.
    v1::WorkerCommand command;
    command.mutable_cancel_import()->set_name(name);
    registry_->Send(record.pending_worker_id, command);
  }
  QST_RETURN_IF_ERROR(RemoveAll(layout_.ModelPath(name)));
  LogInfo(absl::StrCat("model ", name, " removed"));
  Notify(name);
  return absl::OkStatus();
}

absl::StatusOr<v1::Model> ModelManager::GetReady(const std::string& name) {
  QST_ASSIGN_OR_RETURN(const ModelRecord record, Find(name));
  if (record.ready.has_value()) return *record.ready;
  const v1::Model& pending = *record.pending;
  if (IsImporting(record)) {
    return absl::FailedPreconditionError(
        absl::StrCat("model '", name, "' is still being imported (", pending.status_message(), ")"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the import of model '", name, "' failed: ", pending.status_message()));
}

bool ModelManager::IsBeingReplaced(const std::string& name) const {
  const auto found = replacing_.find(name);
  return found != replacing_.end() && found->second;
}

std::uint64_t ModelManager::VersionOf(const std::string& name) { return versions_.emplace(name, 1).first->second; }

std::uint64_t ModelManager::Wait(const std::string& name, std::uint64_t seen_version, Callback callback) {
  const absl::StatusOr<ModelRecord> record = Find(name);
  if (!record.ok()) {
    callback(record.status(), seen_version);
    return 0;
  }
  const std::uint64_t version = VersionOf(name);
  if (version != seen_version) {
    // The outcome of a failed replacement is what its watcher came for.
    callback(record->pending.has_value() ? *record->pending : *record->ready, version);
    return 0;
  }
  const std::uint64_t handle = next_handle_++;
  waiters_.emplace(handle, Waiter{name, seen_version, std::move(callback)});
  return handle;
}

void ModelManager::Forget(std::uint64_t handle) { waiters_.erase(handle); }

void ModelManager::EndWaits(const absl::Status& status) {
  for (auto& [handle, waiter] : std::exchange(waiters_, {})) waiter.callback(status, waiter.seen_version);
}

void ModelManager::Notify(const std::string& name) {
  ++versions_.emplace(name, 1).first->second;
  std::vector<Waiter> ready;
  for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
    if (waiter->second.name == name) {
      ready.push_back(std::move(waiter->second));
      waiter = waiters_.erase(waiter);
    } else {
      ++waiter;
    }
  }
  for (Waiter& waiter : ready) Wait(waiter.name, waiter.seen_version, std::move(waiter.callback));
}

absl::Status ModelManager::Save(const ModelRecord& record) {
  QST_RETURN_IF_ERROR(store_->PutModel(record));
  Notify(record.name);
  return absl::OkStatus();
}

void ModelManager::Schedule() {
  while (!queue_.empty()) {
    const std::vector<std::string> idle = registry_->IdleWorkers();
    absl::StatusOr<ModelRecord> record = Find(queue_.front());
    if (!record.ok()) {
      queue_.pop_front();
      continue;
    }
    if (idle.empty()) {
      const WorkerRegistry::Counts counts = registry_->Count();
      const std::string message = WaitingMessage(1, counts.registered, counts.busy);
      if (record->pending->status_message() == message) return;
      record->pending->set_status_message(message);
      const absl::Status saved = Save(*record);
      if (!saved.ok()) LogError(absl::StrCat("model ", record->name, ": ", saved.ToString()));
      return;
    }
    const std::string& worker_id = idle.front();
    record->pending_worker_id = worker_id;
    record->pending->set_status_message(absl::StrCat("importing on worker ", worker_id));
    queue_.pop_front();
    const absl::Status saved = Save(*record);
    if (!saved.ok()) {
      LogError(absl::StrCat("model ", record->name, ": ", saved.ToString()));
      continue;
    }
    registry_->SetImport(worker_id, record->name);
    LogInfo(absl::StrCat("model ", record->name, ": import starts on ", registry_->Describe(worker_id)));
    SendImport(*record);
  }
}

void ModelManager::SendImport(const ModelRecord& record) {
  v1::WorkerCommand command;
  v1::ImportCommand* import = command.mutable_import();
  import->set_name(record.name);
  import->set_source_path(record.pending->source_path());
  import->set_destination_path(record.pending_path);
  *import->mutable_quantization() = record.pending->quantization();
  registry_->Send(record.pending_worker_id, command);
}

void ModelManager::OnReport(const std::string& worker_id, const v1::ModelReport& report) {
  const v1::Model& reported = report.model();
  const bool is_over = reported.state() != v1::MODEL_STATE_IMPORTING;
  absl::StatusOr<ModelRecord> record = Find(reported.name());
  const bool is_known = record.ok() && IsImporting(*record) && record->pending_worker_id == worker_id;
  // Worker and record first: Save and SetImport call back into scheduling.
  recovered_.erase(reported.name());
  ++num_reports_[reported.name()];
  absl::Status status;
  if (!is_known) {
    // Workers repeat the outcome of their imports whenever they connect.
    if (!is_over) {
      LogWarning(absl::StrCat(registry_->Describe(worker_id), " imports model '", reported.name(),
                              "', which it was not asked to (any more): told to stop"));
      v1::WorkerCommand command;
      command.mutable_cancel_import()->set_name(reported.name());
      registry_->Send(worker_id, command);
    }
  } else if (reported.state() == v1::MODEL_STATE_READY) {
    status = Finish(*std::move(record), reported);
  } else if (reported.state() == v1::MODEL_STATE_FAILED) {
    status = Fail(*std::move(record), reported.status_message());
  } else {
    v1::Model& pending = *record->pending;
    if (!reported.status_message().empty()) pending.set_status_message(reported.status_message());
    pending.set_bytes_done(reported.bytes_done());
    pending.set_bytes_total(reported.bytes_total());
    status = Save(*record);
  }
  if (!status.ok()) LogError(absl::StrCat("model ", reported.name(), ": ", status.ToString()));
  // A late word on another import than the present one says nothing about that.
  if (!is_over) {
    registry_->SetImport(worker_id, reported.name());
  } else if (registry_->ImportOf(worker_id) == reported.name()) {
    registry_->SetImport(worker_id, "");
  }
}

absl::Status ModelManager::Finish(ModelRecord record, v1::Model reported) {
  const absl::Status replaced = ReplaceFolder(record.pending_path, layout_.ModelPath(record.name));
  if (!replaced.ok()) {
    return Fail(std::move(record), absl::StrCat("the imported files cannot be put in place: ", replaced.message()));
  }
  const v1::Model pending = *record.pending;
  v1::Model& ready = record.ready.emplace(std::move(reported));
  ready.set_name(record.name);
  ready.set_source_path(pending.source_path());
  ready.set_created_ms(pending.created_ms());
  if (ready.quantization().type() == v1::QUANTIZATION_TYPE_UNSPECIFIED) {
    *ready.mutable_quantization() = pending.quantization();
    QST_RETURN_IF_ERROR(ResolveQuantization(ready.mutable_quantization()));
  }
  record.pending.reset();
  record.pending_path.clear();
  record.pending_worker_id.clear();
  replacing_.erase(record.name);
  LogInfo(absl::StrCat("model ", record.name, ": ready, ", ready.architecture(), ", ", ready.num_layers(), " layers, ",
                       ready.stored_bytes(), " bytes"));
  return Save(record);
}

absl::Status ModelManager::Fail(ModelRecord record, const std::string& message) {
  LogWarning(absl::StrCat("model ", record.name, ": import failed: ", message));
  const absl::Status removed = RemoveAll(record.pending_path);
  if (!removed.ok()) LogWarning(absl::StrCat("model ", record.name, ": ", removed.message()));
  record.pending->set_state(v1::MODEL_STATE_FAILED);
  record.pending->set_status_message(message);
  record.pending_path.clear();
  record.pending_worker_id.clear();
  replacing_.erase(record.name);
  return Save(record);
}

void ModelManager::OnWorkerLost(const std::string& worker_id, const std::string& model, const std::string& reason) {
  absl::StatusOr<ModelRecord> record = Find(model);
  if (!record.ok() || !IsImporting(*record) || record->pending_worker_id != worker_id) return;
  recovered_.erase(model);
  const absl::Status status =
      Fail(*std::move(record), absl::StrCat(registry_->Describe(worker_id), ", which imported it, was lost: ", reason));
  if (!status.ok()) LogError(absl::StrCat("model ", model, ": ", status.ToString()));
}

void ModelManager::OnWorkerConnected(const std::string& worker_id, bool is_new) {
  for (const auto& [name, expected_worker] : recovered_) {
    if (is_new && expected_worker == worker_id) registry_->SetImport(worker_id, name);
  }
  const std::string importing = registry_->ImportOf(worker_id);
  if (is_new || importing.empty()) return;
  executor_->PostAfter(kSilentImport, [this, worker_id, importing, num_reports = num_reports_[importing]] {
    if (num_reports_[importing] != num_reports || registry_->ImportOf(worker_id) != importing) return;
    const absl::StatusOr<ModelRecord> record = Find(importing);
    if (!record.ok() || !IsImporting(*record) || record->pending_worker_id != worker_id) return;
    LogInfo(absl::StrCat("model ", importing, ": ", registry_->Describe(worker_id), " is told again to import it"));
    SendImport(*record);
  });
}

}  // namespace qst
