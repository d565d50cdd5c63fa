#include "server/job_store/in_memory_job_store.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace qst {
namespace {

absl::Status NoSuch(absl::string_view what, absl::string_view name) {
  return absl::NotFoundError(absl::StrCat("no ", what, " '", name, "'"));
}

// Whether `events` run from first without a gap to last.
bool AreContiguous(const std::vector<v1::JobEvent>& events, std::uint64_t first, std::uint64_t last) {
  std::uint64_t next = first;
  for (const v1::JobEvent& event : events) {
    if (event.sequence() != next++) return false;
  }
  return next == last + 1;
}

}  // namespace

InMemoryJobStore::StoredJob* InMemoryJobStore::Find(const std::string& id) {
  for (StoredJob& stored : jobs_) {
    if (stored.record.job.id() == id) return &stored;
  }
  return nullptr;
}

absl::Status InMemoryJobStore::CreateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events) {
  for (const StoredJob& stored : jobs_) {
    if (stored.record.job.id() == record.job.id() ||
        (!record.request_id.empty() && stored.record.request_id == record.request_id)) {
      return absl::AlreadyExistsError(absl::StrCat("job '", record.job.id(), "' or its request is stored already"));
    }
  }
  if (!AreContiguous(events, 1, record.last_sequence)) return absl::InternalError("events of a new job have a gap");
  jobs_.push_back({record, events});
  return absl::OkStatus();
}

absl::Status InMemoryJobStore::UpdateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events,
                                         Durability /*durability*/) {
  StoredJob* stored = Find(record.job.id());
  if (stored == nullptr) return NoSuch("job", record.job.id());
  if (!AreContiguous(events, stored->record.last_sequence + 1, record.last_sequence)) {
    return absl::InternalError(absl::StrCat("events of job ", record.job.id(), " have a gap"));
  }
  stored->record = record;
  stored->events.insert(stored->events.end(), events.begin(), events.end());
  return absl::OkStatus();
}

absl::StatusOr<JobRecord> InMemoryJobStore::GetJob(const std::string& id) {
  StoredJob* stored = Find(id);
  if (stored == nullptr) return NoSuch("job", id);
  return stored->record;
}

absl::StatusOr<std::optional<JobRecord>> InMemoryJobStore::FindJobByRequest(const std::string& request_id) {
  for (const StoredJob& stored : jobs_) {
    if (!request_id.empty() && stored.record.request_id == request_id) return {stored.record};
  }
  return {std::nullopt};
}

absl::StatusOr<std::vector<JobRecord>> InMemoryJobStore::ListJobs(const std::vector<v1::JobState>& states,
                                                                  std::uint32_t limit) {
  std::vector<JobRecord> records;
  for (auto stored = jobs_.rbegin(); stored != jobs_.rend(); ++stored) {
    if (limit != 0 && records.size() == limit) break;
    const bool wanted =
        states.empty() || std::find(states.begin(), states.end(), stored->record.job.state()) != states.end();
    if (wanted) records.push_back(stored->record);
  }
  return records;
}

absl::StatusOr<std::vector<v1::JobEvent>> InMemoryJobStore::ListEvents(const std::string& job_id, std::uint64_t after,
                                                                       std::uint32_t limit) {
  std::vector<v1::JobEvent> events;
  StoredJob* stored = Find(job_id);
  if (stored == nullptr) return events;
  for (std::uint64_t i = after; i < stored->events.size() && events.size() < limit; ++i) {
    events.push_back(stored->events[i]);
  }
  return events;
}

absl::Status InMemoryJobStore::PutDataset(const DatasetRecord& record) {
  DatasetRecord* place = nullptr;
  for (DatasetRecord& other : datasets_) {
    if (other.dataset.id() == record.dataset.id()) {
      place = &other;
      continue;
    }
    for (const std::string& name : record.names) {
      if (std::count(other.names.begin(), other.names.end(), name) > 0) {
        return absl::AlreadyExistsError(absl::StrCat("the name '", name, "' belongs to another data set"));
      }
    }
  }
  if (place == nullptr) {
    datasets_.push_back(record);
    place = &datasets_.back();
  }
  *place = record;
  place->dataset.clear_name();
  return absl::OkStatus();
}

absl::StatusOr<std::optional<DatasetRecord>> InMemoryJobStore::FindDataset(const std::string& id) {
  for (const DatasetRecord& record : datasets_) {
    if (record.dataset.id() == id) return {record};
  }
  return {std::nullopt};
}

absl::StatusOr<std::optional<DatasetRecord>> InMemoryJobStore::FindDatasetByName(const std::string& name) {
  for (const DatasetRecord& record : datasets_) {
    if (std::count(record.names.begin(), record.names.end(), name) > 0) return {record};
  }
  return {std::nullopt};
}

absl::StatusOr<std::vector<DatasetRecord>> InMemoryJobStore::ListDatasets() { return datasets_; }

absl::Status InMemoryJobStore::DeleteDataset(const std::string& id) {
  const auto found = std::find_if(datasets_.begin(), datasets_.end(),
                                  [&](const DatasetRecord& record) { return record.dataset.id() == id; });
  if (found == datasets_.end()) return NoSuch("data set", id);
  datasets_.erase(found);
  return absl::OkStatus();
}

absl::Status InMemoryJobStore::PutModel(const ModelRecord& record) {
  models_[record.name] = record;
  return absl::OkStatus();
}

absl::StatusOr<std::optional<ModelRecord>> InMemoryJobStore::FindModel(const std::string& name) {
  const auto found = models_.find(name);
  if (found == models_.end()) return {std::nullopt};
  return {found->second};
}

absl::StatusOr<std::vector<ModelRecord>> InMemoryJobStore::ListModels() {
  std::vector<ModelRecord> records;
  for (const auto& [name, record] : models_) records.push_back(record);
  return records;
}

absl::Status InMemoryJobStore::DeleteModel(const std::string& name) {
  return models_.erase(name) == 1 ? absl::OkStatus() : NoSuch("model", name);
}

}  // namespace qst
