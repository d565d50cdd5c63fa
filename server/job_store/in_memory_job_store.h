// A JobStore that forgets: for tests, and the plain statement of what a JobStore does.
#ifndef QST_SERVER_JOB_STORE_IN_MEMORY_JOB_STORE_H_
#define QST_SERVER_JOB_STORE_IN_MEMORY_JOB_STORE_H_

#include <map>
#include <string>
#include <vector>

#include "server/job_store/job_store.h"

namespace qst {

class InMemoryJobStore : public JobStore {
 public:
  absl::Status CreateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events) override;
  absl::Status UpdateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events,
                         Durability durability) override;
  absl::StatusOr<JobRecord> GetJob(const std::string& id) override;
  absl::StatusOr<std::optional<JobRecord>> FindJobByRequest(const std::string& request_id) override;
  absl::StatusOr<std::vector<JobRecord>> ListJobs(const std::vector<v1::JobState>& states,
                                                  std::uint32_t limit) override;
  absl::StatusOr<std::vector<v1::JobEvent>> ListEvents(const std::string& job_id, std::uint64_t after,
                                                       std::uint32_t limit) override;
  absl::Status PutDataset(const DatasetRecord& record) override;
  absl::StatusOr<std::optional<DatasetRecord>> FindDataset(const std::string& id) override;
  absl::StatusOr<std::optional<DatasetRecord>> FindDatasetByName(const std::string& name) override;
  absl::StatusOr<std::vector<DatasetRecord>> ListDatasets() override;
  absl::Status DeleteDataset(const std::string& id) override;
  absl::Status PutModel(const ModelRecord& record) override;
  absl::StatusOr<std::optional<ModelRecord>> FindModel(const std::string& name) override;
  absl::StatusOr<std::vector<ModelRecord>> ListModels() override;
  absl::Status DeleteModel(const std::string& name) override;

 private:
  struct StoredJob {
    JobRecord record;
    std::vector<v1::JobEvent> events;
  };
  // In order of creation.
  std::vector<StoredJob> jobs_;
  std::vector<DatasetRecord> datasets_;
  std::map<std::string, ModelRecord> models_;

  StoredJob* Find(const std::string& id);
};

}  // namespace qst

#endif  // QST_SERVER_JOB_STORE_IN_MEMORY_JOB_STORE_H_
