// What the coordinator must not forget: jobs with their events, data sets, models. Every call is one transaction; when
// it returns OK the change survives the end of the process. See SqliteJobStore for what survives a power cut.
#ifndef QST_SERVER_JOB_STORE_JOB_STORE_H_
#define QST_SERVER_JOB_STORE_JOB_STORE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

struct JobRecord {
  v1::Job job;
  // Of the SubmitJob call that made it; may be empty.
  std::string request_id;
  // Sequence of the newest event; 0 = none.
  std::uint64_t last_sequence = 0;
  // JobReports of the present attempt that are stored.
  std::uint64_t report_sequence = 0;
  bool cancel_requested = false;
};

// The content of one data set; `dataset.name` is not used here.
struct DatasetRecord {
  v1::Dataset dataset;
  // Sorted, without duplicates; a name belongs to one data set at a time. May be empty.
  std::vector<std::string> names;
};

struct ModelRecord {
  std::string name;
  // The model that jobs can use.
  std::optional<v1::Model> ready;
  // The import under way, or the last one if it failed.
  std::optional<v1::Model> pending;
  // Folder that the import makes, and the worker that does it; empty = none yet.
  std::string pending_path;
  std::string pending_worker_id;
};

// How much a transaction has to survive.
enum class Durability {
  // Someone is told of it (job accepted, state changed): also a power cut.
  kSynced,
  // Progress and metrics, which can be had again: the end of the process.
  kProcess,
};

// Not thread-safe: belongs to the control loop.
class JobStore {
 public:
  virtual ~JobStore() = default;

  // Stores a new job with its first events. kAlreadyExists: its id or request_id is taken.
  virtual absl::Status CreateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events) = 0;
  // Stores the job as it is now together with the events that led there, all or nothing. The events follow the stored
  // ones without a gap and end at record.last_sequence; kInternal otherwise. kNotFound: no such job.
  virtual absl::Status UpdateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events,
                                 Durability durability) = 0;
  // kNotFound.
  virtual absl::StatusOr<JobRecord> GetJob(const std::string& id) = 0;
  virtual absl::StatusOr<std::optional<JobRecord>> FindJobByRequest(const std::string& request_id) = 0;
  // Newest first; `states` empty = all, `limit` 0 = all.
  virtual absl::StatusOr<std::vector<JobRecord>> ListJobs(const std::vector<v1::JobState>& states,
                                                          std::uint32_t limit) = 0;
  // Events with sequence > after, in order; at most `limit` of them.
  virtual absl::StatusOr<std::vector<v1::JobEvent>> ListEvents(const std::string& job_id, std::uint64_t after,
                                                               std::uint32_t limit) = 0;

  // Makes or replaces the record with this dataset.id(). kAlreadyExists: a name belongs to another data set.
  virtual absl::Status PutDataset(const DatasetRecord& record) = 0;
  virtual absl::StatusOr<std::optional<DatasetRecord>> FindDataset(const std::string& id) = 0;
  virtual absl::StatusOr<std::optional<DatasetRecord>> FindDatasetByName(const std::string& name) = 0;
  // By time of creation, oldest first.
  virtual absl::StatusOr<std::vector<DatasetRecord>> ListDatasets() = 0;
  // kNotFound.
  virtual absl::Status DeleteDataset(const std::string& id) = 0;

  // Makes or replaces the record with this name.
  virtual absl::Status PutModel(const ModelRecord& record) = 0;
  virtual absl::StatusOr<std::optional<ModelRecord>> FindModel(const std::string& name) = 0;
  // By name.
  virtual absl::StatusOr<std::vector<ModelRecord>> ListModels() = 0;
  // kNotFound.
  virtual absl::Status DeleteModel(const std::string& name) = 0;
};

}  // namespace qst

#endif  // QST_SERVER_JOB_STORE_JOB_STORE_H_
