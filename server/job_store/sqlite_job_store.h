// The durable JobStore: one SQLite file in write-ahead mode, with a schema version and forward migrations.
//
// What survives: every transaction survives the end of the process, kill -9 included. Durability::kSynced also
// survives a power cut: the log is synced before the call returns, and with it all that was written before. kProcess
// skips that sync (some milliseconds per training step otherwise); a power cut may take the newest of those, and never
// leaves the file inconsistent.
#ifndef QST_SERVER_JOB_STORE_SQLITE_JOB_STORE_H_
#define QST_SERVER_JOB_STORE_SQLITE_JOB_STORE_H_

#include <memory>
#include <string>
#include <vector>

#include "server/job_store/job_store.h"

namespace qst {

class SqliteConnection;

class SqliteJobStore : public JobStore {
 public:
  // Opens or makes the file and brings its schema up to date. kFailedPrecondition: made by a newer version, or in use
  // by another coordinator. kDataLoss: not a database or damaged. kUnavailable: cannot be opened.
  static absl::StatusOr<std::unique_ptr<SqliteJobStore>> Open(const std::string& path);
  ~SqliteJobStore() override;

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

  // Newest schema that this version knows; for tests.
  static int SchemaVersion();

 private:
  explicit SqliteJobStore(std::unique_ptr<SqliteConnection> connection);

  absl::Status Migrate();
  absl::Status SetDurability(Durability durability);
  absl::Status InsertEvents(const std::string& job_id, std::uint64_t after, std::uint64_t last,
                            const std::vector<v1::JobEvent>& events);

  std::unique_ptr<SqliteConnection> connection_;
  Durability durability_ = Durability::kSynced;
};

}  // namespace qst

#endif  // QST_SERVER_JOB_STORE_SQLITE_JOB_STORE_H_
