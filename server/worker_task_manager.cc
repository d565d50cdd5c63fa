#include "server/worker_task_manager.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "server/job_spec_defaults.h"
#include "server/log.h"

namespace qst {
namespace {

constexpr absl::Duration kLongestWait = absl::Seconds(10);
// Left of the client's time to tell it why nothing came.
constexpr absl::Duration kTimeToAnswer = absl::Milliseconds(300);
constexpr std::size_t kMaxTasks = 256;
// All tokens of a longer text would not fit into one message.
constexpr std::size_t kMaxTextBytes = 128 << 10;
constexpr std::uint32_t kMaxRendered = 100;

bool IsOutcome(const v1::TaskReport& report, const v1::TaskCommand& command) {
  switch (command.kind_case()) {
    case v1::TaskCommand::kTokenize:
      return report.has_tokenize();
    case v1::TaskCommand::kDescribeDataset:
      return report.has_describe_dataset();
    case v1::TaskCommand::kExportModel:
      return report.has_export_model();
    default:
      return false;
  }
}

}  // namespace

WorkerTaskManager::WorkerTaskManager(Executor* executor, WorkerRegistry* registry, ModelManager* models,
                                     DatasetManager* datasets, StoreLayout layout)
    : executor_(executor), registry_(registry), models_(models), datasets_(datasets), layout_(std::move(layout)) {}

absl::Status WorkerTaskManager::SetModel(const std::string& name, absl::string_view field, Task* task,
                                         std::string* path) {
  if (name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": is required: a name from `qst model list`"));
  }
  const absl::StatusOr<v1::Model> model = models_->GetReady(name);
  if (!model.ok()) return Annotate(model.status(), field);
  if (models_->IsBeingReplaced(name)) {
    return absl::FailedPreconditionError(absl::StrCat(
        field, ": model '", name, "' is being replaced; try again when `qst model show ", name, "` says READY"));
  }
  task->model = name;
  *path = layout_.ModelPath(name);
  return absl::OkStatus();
}

absl::StatusOr<std::string> WorkerTaskManager::Tokenize(const v1::TokenizeRequest& request, absl::Time deadline,
                                                        Callbacks callbacks) {
  Task task;
  task.callbacks = std::move(callbacks);
  task.is_repeatable = true;
  v1::TokenizeTask* tokenize = task.command.mutable_tokenize();
  QST_RETURN_IF_ERROR(SetModel(request.model(), "model", &task, tokenize->mutable_model_path()));
  if (request.text().size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: must be at most ", kMaxTextBytes, " bytes, is ", request.text().size()));
  }
  *tokenize->mutable_request() = request;
  return Start(std::move(task), deadline);
}

absl::StatusOr<std::string> WorkerTaskManager::DescribeDataset(const v1::DescribeDatasetRequest& request,
                                                               absl::Time deadline, Callbacks callbacks) {
  Task task;
  task.callbacks = std::move(callbacks);
  task.is_repeatable = true;
  v1::DescribeDatasetTask* describe = task.command.mutable_describe_dataset();
  QST_ASSIGN_OR_RETURN(const v1::Dataset dataset, datasets_->Resolve(request.dataset(), "dataset"));
  task.dataset_id = dataset.id();
  if (!request.model().empty()) {
    QST_RETURN_IF_ERROR(SetModel(request.model(), "model", &task, describe->mutable_model_path()));
  }
  if (request.render() > kMaxRendered) {
    return absl::InvalidArgumentError(
        absl::StrCat("render: must be at most ", kMaxRendered, ", is ", request.render()));
  }
  if (request.render() > 0 && request.model().empty()) {
    return absl::InvalidArgumentError("render: needs a model, whose tokenizer and template make the tokens");
  }
  *describe->mutable_request() = request;
  QST_RETURN_IF_ERROR(FillDataDefaults(describe->mutable_request()->mutable_data()));
  describe->set_dataset_path(datasets_->PathOf(dataset));
  describe->set_file_name(dataset.file_name());
  return Start(std::move(task), deadline);
}

absl::StatusOr<std::string> WorkerTaskManager::ExportModel(const v1::ExportModelRequest& request, absl::Time deadline,
                                                           Callbacks callbacks) {
  Task task;
  task.callbacks = std::move(callbacks);
  v1::ExportModelTask* export_task = task.command.mutable_export_model();
  QST_RETURN_IF_ERROR(SetModel(request.name(), "name", &task, export_task->mutable_model_path()));
  if (request.destination_path().empty() || request.destination_path().front() != '/') {
    return absl::InvalidArgumentError(absl::StrCat("destination_path: must be absolute, since a worker writes it, is '",
                                                   request.destination_path().substr(0, 200), "'"));
  }
  const std::string& dtype = request.dtype();
  if (!dtype.empty() && dtype != "f32" && dtype != "bf16" && dtype != "f16") {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype: must be one of f32, bf16, f16, is '", dtype.substr(0, 80), "'"));
  }
  if (!dtype.empty() && !request.dequantize()) {
    return absl::InvalidArgumentError("dtype: only for dequantized weights; set dequantize");
  }
  *export_task->mutable_request() = request;
  return Start(std::move(task), deadline);
}

absl::StatusOr<std::string> WorkerTaskManager::Start(Task task, absl::Time deadline) {
  if (tasks_.size() >= kMaxTasks) {
    return absl::ResourceExhaustedError(absl::StrCat(kMaxTasks, " requests are being worked on; try again later"));
  }
  std::string id;
  do {
    id = "t-" + RandomHex(8);
  } while (tasks_.count(id) > 0);
  task.command.set_task_id(id);
  tasks_.emplace(id, std::move(task));
  const absl::Duration patience = std::min(deadline - executor_->Now() - kTimeToAnswer, kLongestWait);
  executor_->PostAfter(patience, [this, id] {
    const auto found = tasks_.find(id);
    if (found == tasks_.end() || !found->second.worker_id.empty()) return;
    Finish(id, absl::ResourceExhaustedError("no worker is connected; `qst workers` shows them, `qst up` starts some"),
           false);
  });
  Schedule();
  return id;
}

std::string WorkerTaskManager::ChooseWorker() const {
  const std::vector<std::string> idle = registry_->IdleWorkers();
  std::string best;
  std::size_t best_load = std::numeric_limits<std::size_t>::max();
  for (const std::string& id : registry_->ConnectedWorkers()) {
    std::size_t load = static_cast<std::size_t>(2 * std::count_if(tasks_.begin(), tasks_.end(), [&](const auto& entry) {
                                                  return entry.second.worker_id == id;
                                                }));
    // Of two with equally many tasks, the one that hosts nothing.
    if (std::find(idle.begin(), idle.end(), id) == idle.end()) ++load;
    if (load < best_load) {
      best = id;
      best_load = load;
    }
  }
  return best;
}

void WorkerTaskManager::Schedule() {
  for (auto& [id, task] : tasks_) {
    if (!task.worker_id.empty()) continue;
    task.worker_id = ChooseWorker();
    if (task.worker_id.empty()) return;
    LogInfo(absl::StrCat("task ", id, ": given to ", registry_->Describe(task.worker_id)));
    Send(task);
  }
}

void WorkerTaskManager::Send(const Task& task) {
  v1::WorkerCommand command;
  *command.mutable_task() = task.command;
  registry_->Send(task.worker_id, command);
}

void WorkerTaskManager::Finish(const std::string& id, absl::StatusOr<v1::TaskReport> outcome, bool tells_worker) {
  auto node = tasks_.extract(id);
  if (node.empty()) return;
  const Task& task = node.mapped();
  LogInfo(absl::StrCat("task ", id, ": ", outcome.ok() ? "done" : outcome.status().ToString()));
  if (tells_worker && !task.worker_id.empty()) {
    v1::WorkerCommand command;
    command.mutable_cancel_task()->set_task_id(id);
    registry_->Send(task.worker_id, command);
  }
  if (task.callbacks.on_done) task.callbacks.on_done(std::move(outcome));
}

void WorkerTaskManager::Cancel(const std::string& id) {
  const auto found = tasks_.find(id);
  if (found == tasks_.end()) return;
  found->second.callbacks.on_done = nullptr;
  Finish(id, absl::CancelledError("cancelled by the client"), true);
}

void WorkerTaskManager::EndAll(const absl::Status& status) {
  std::vector<std::string> ids;
  for (const auto& [id, task] : tasks_) ids.push_back(id);
  for (const std::string& id : ids) Finish(id, status, true);
}

bool WorkerTaskManager::UsesModel(const std::string& name) const {
  return std::any_of(tasks_.begin(), tasks_.end(), [&](const auto& entry) { return entry.second.model == name; });
}

bool WorkerTaskManager::UsesDataset(const std::string& dataset_id) const {
  return std::any_of(tasks_.begin(), tasks_.end(),
                     [&](const auto& entry) { return entry.second.dataset_id == dataset_id; });
}

void WorkerTaskManager::OnReport(const std::string& worker_id, const v1::TaskReport& report) {
  const auto found = tasks_.find(report.task_id());
  if (found == tasks_.end() || found->second.worker_id != worker_id) {
    // Also what a worker repeats after it lost its connection.
    v1::WorkerCommand command;
    command.mutable_cancel_task()->set_task_id(report.task_id());
    registry_->Send(worker_id, command);
    return;
  }
  Task& task = found->second;
  if (report.has_progress()) {
    if (task.callbacks.on_progress) task.callbacks.on_progress(report.progress());
  } else if (report.has_error() && report.error().code() != 0) {
    const auto code = static_cast<absl::StatusCode>(report.error().code());
    Finish(report.task_id(), absl::Status(code, report.error().message()), true);
  } else if (IsOutcome(report, task.command)) {
    Finish(report.task_id(), report, true);
  } else {
    Finish(report.task_id(),
           absl::InternalError(absl::StrCat(registry_->Describe(worker_id), " answered something else than was asked")),
           true);
  }
}

void WorkerTaskManager::OnWorkerLost(const std::string& worker_id, const std::string& reason) {
  std::vector<std::string> failed;
  for (auto& [id, task] : tasks_) {
    if (task.worker_id != worker_id) continue;
    if (task.is_repeatable && task.num_losses++ == 0) {
      LogInfo(absl::StrCat("task ", id, ": ", registry_->Describe(worker_id), " was lost; another one does it"));
      task.worker_id.clear();
    } else {
      failed.push_back(id);
    }
  }
  for (const std::string& id : failed) {
    Finish(id,
           absl::UnavailableError(
               absl::StrCat(registry_->Describe(worker_id), ", which did it, was lost: ", reason, "; try again")),
           false);
  }
  // The registry is not done with the worker yet: others get the tasks when that is so.
  executor_->Post([this] {
    Schedule();
    std::vector<std::string> waiting;
    for (const auto& [id, task] : tasks_) {
      if (task.worker_id.empty() && task.num_losses > 0) waiting.push_back(id);
    }
    for (const std::string& id : waiting) {
      Finish(id, absl::UnavailableError("its worker was lost and no other is connected; try again"), false);
    }
  });
}

void WorkerTaskManager::OnWorkerReturned(const std::string& worker_id) {
  // A worker that has a task still, or its outcome, takes no notice.
  for (const auto& [id, task] : tasks_) {
    if (task.worker_id == worker_id) Send(task);
  }
}

}  // namespace qst
