#include "server/dataset_manager.h"

#include <algorithm>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/support/status_macros.h"
#include "server/job_spec_defaults.h"
#include "server/log.h"

namespace qst {
namespace {

absl::Status NameTaken(const std::string& name) {
  return absl::AlreadyExistsError(absl::StrCat("the name '", name,
                                               "' belongs to another data set; remove it first (`qst dataset rm ", name,
                                               "`) or choose another"));
}

}  // namespace

absl::Status DatasetManager::CheckName(const std::string& name, const std::string& sha256) {
  if (name.empty()) return absl::OkStatus();
  QST_RETURN_IF_ERROR(ValidateName(name, "name"));
  if (sha256.empty()) return absl::OkStatus();
  QST_ASSIGN_OR_RETURN(const std::optional<DatasetRecord> owner, store_->FindDatasetByName(name));
  if (owner.has_value() && owner->dataset.id() != absl::AsciiStrToLower(sha256)) return NameTaken(name);
  return absl::OkStatus();
}

absl::StatusOr<v1::UploadDatasetResponse> DatasetManager::Add(const std::string& name,
                                                              const ReceivedDataset& received) {
  QST_ASSIGN_OR_RETURN(std::optional<DatasetRecord> known, store_->FindDataset(received.id));
  v1::UploadDatasetResponse response;
  response.set_already_stored(known.has_value());
  DatasetRecord record;
  if (known.has_value()) {
    record = *std::move(known);
  } else {
    record.dataset.set_id(received.id);
    record.dataset.set_size_bytes(received.size_bytes);
    record.dataset.set_created_ms(absl::ToUnixMillis(executor_->Now()));
  }
  // The newest upload's file name counts: its extension tells the format, and the earlier one may have been wrong.
  record.dataset.set_file_name(received.file_name);
  if (!name.empty() && std::count(record.names.begin(), record.names.end(), name) == 0) {
    record.names.push_back(name);
    std::sort(record.names.begin(), record.names.end());
  }
  const absl::Status stored = store_->PutDataset(record);
  if (absl::IsAlreadyExists(stored)) {
    if (!response.already_stored()) RemoveAll(layout_.DatasetFolder(received.id)).IgnoreError();
    return NameTaken(name);
  }
  QST_RETURN_IF_ERROR(stored);
  *response.mutable_dataset() = record.dataset;
  response.mutable_dataset()->set_name(name);
  LogInfo(absl::StrCat("data set ", received.id.substr(0, 12), " '", name, "' (", received.file_name, ", ",
                       received.size_bytes, " bytes) ", response.already_stored() ? "was stored already" : "stored"));
  return response;
}

absl::StatusOr<std::vector<v1::Dataset>> DatasetManager::List() {
  QST_ASSIGN_OR_RETURN(const std::vector<DatasetRecord> records, store_->ListDatasets());
  std::vector<v1::Dataset> datasets;
  for (const DatasetRecord& record : records) {
    if (record.names.empty()) datasets.push_back(record.dataset);
    for (const std::string& name : record.names) datasets.emplace_back(record.dataset).set_name(name);
  }
  return datasets;
}

absl::Status DatasetManager::Delete(const std::string& name_or_id) {
  QST_ASSIGN_OR_RETURN(std::optional<DatasetRecord> record, store_->FindDatasetByName(name_or_id));
  if (record.has_value() && record->names.size() > 1) {
    record->names.erase(std::find(record->names.begin(), record->names.end(), name_or_id));
    return store_->PutDataset(*record);
  }
  QST_ASSIGN_OR_RETURN(const v1::Dataset dataset, Resolve(name_or_id, "dataset"));
  if (in_use_ && in_use_(dataset.id())) {
    return absl::FailedPreconditionError(
        absl::StrCat("data set '", name_or_id, "' is used by a job that is not over; cancel or await it first"));
  }
  QST_RETURN_IF_ERROR(store_->DeleteDataset(dataset.id()));
  LogInfo(absl::StrCat("data set ", dataset.id().substr(0, 12), " '", name_or_id, "' removed"));
  return RemoveAll(layout_.DatasetFolder(dataset.id()));
}

absl::StatusOr<v1::Dataset> DatasetManager::Resolve(const std::string& name_or_id, absl::string_view field) {
  QST_ASSIGN_OR_RETURN(std::optional<DatasetRecord> record, store_->FindDatasetByName(name_or_id));
  if (!record.has_value()) {
    QST_ASSIGN_OR_RETURN(record, store_->FindDataset(name_or_id));
  }
  if (!record.has_value()) {
    return absl::NotFoundError(absl::StrCat(field, ": no data set '", name_or_id, "'; see `qst dataset list`"));
  }
  v1::Dataset dataset = record->dataset;
  if (name_or_id != dataset.id()) dataset.set_name(name_or_id);
  return dataset;
}

}  // namespace qst
