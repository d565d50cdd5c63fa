#include "server/job_store/sqlite_job_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/support/status_macros.h"
#include "server/job_store/sqlite_connection.h"

namespace qst {
namespace {

// kMigrations[v] takes the schema from version v to v + 1. Never change one that was released: add another.
constexpr const char* kMigrations[] = {
    // Jobs are numbered in the order of their submission. Messages are stored as they are; columns beside them are
    // what queries ask for.
    R"sql(
    CREATE TABLE jobs (
      number INTEGER PRIMARY KEY AUTOINCREMENT,
      id TEXT NOT NULL UNIQUE,
      request_id TEXT UNIQUE,
      state INTEGER NOT NULL,
      job BLOB NOT NULL,
      last_sequence INTEGER NOT NULL,
      report_sequence INTEGER NOT NULL,
      cancel_requested INTEGER NOT NULL
    );
    CREATE INDEX jobs_by_state ON jobs (state, number);
    CREATE TABLE events (
      job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
      sequence INTEGER NOT NULL,
      event BLOB NOT NULL,
      PRIMARY KEY (job_id, sequence)
    ) WITHOUT ROWID;
    CREATE TABLE datasets (
      number INTEGER PRIMARY KEY AUTOINCREMENT,
      id TEXT NOT NULL UNIQUE,
      dataset BLOB NOT NULL
    );
    CREATE TABLE dataset_names (
      name TEXT PRIMARY KEY,
      dataset_id TEXT NOT NULL REFERENCES datasets (id) ON DELETE CASCADE
    ) WITHOUT ROWID;
    CREATE INDEX dataset_names_by_id ON dataset_names (dataset_id);
    CREATE TABLE models (
      name TEXT PRIMARY KEY,
      ready BLOB,
      pending BLOB,
      pending_path TEXT NOT NULL,
      pending_worker_id TEXT NOT NULL
    ) WITHOUT ROWID;
    )sql",
};
constexpr int kSchemaVersion = sizeof(kMigrations) / sizeof(kMigrations[0]);

constexpr absl::string_view kJobColumns = "job, request_id, last_sequence, report_sequence, cancel_requested";

absl::StatusOr<JobRecord> ReadJob(const SqliteStatement& row) {
  JobRecord record;
  QST_RETURN_IF_ERROR(row.Proto(0, &record.job));
  record.request_id = row.Text(1);
  record.last_sequence = static_cast<std::uint64_t>(row.Int(2));
  record.report_sequence = static_cast<std::uint64_t>(row.Int(3));
  record.cancel_requested = row.Int(4) != 0;
  return record;
}

absl::StatusOr<ModelRecord> ReadModel(const SqliteStatement& row) {
  ModelRecord record;
  record.name = row.Text(0);
  if (!row.IsNull(1)) QST_RETURN_IF_ERROR(row.Proto(1, &record.ready.emplace()));
  if (!row.IsNull(2)) QST_RETURN_IF_ERROR(row.Proto(2, &record.pending.emplace()));
  record.pending_path = row.Text(3);
  record.pending_worker_id = row.Text(4);
  return record;
}

absl::Status ReadDatasetNames(SqliteConnection* connection, DatasetRecord* record) {
  QST_ASSIGN_OR_RETURN(SqliteStatement names,
                       connection->Prepare("SELECT name FROM dataset_names WHERE dataset_id = ? ORDER BY name"));
  names.BindText(record->dataset.id());
  while (true) {
    QST_ASSIGN_OR_RETURN(const bool has_row, names.Step());
    if (!has_row) return absl::OkStatus();
    record->names.push_back(names.Text(0));
  }
}

}  // namespace

SqliteJobStore::SqliteJobStore(std::unique_ptr<SqliteConnection> connection) : connection_(std::move(connection)) {}

SqliteJobStore::~SqliteJobStore() = default;

int SqliteJobStore::SchemaVersion() { return kSchemaVersion; }

absl::StatusOr<std::unique_ptr<SqliteJobStore>> SqliteJobStore::Open(const std::string& path) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<SqliteConnection> connection, SqliteConnection::Open(path));
  std::unique_ptr<SqliteJobStore> store(new SqliteJobStore(std::move(connection)));
  // An exclusive lock, held as long as the connection: a second coordinator on the same store is an error, not a race.
  for (const char* pragma : {"PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = WAL",
                             "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON"}) {
    const absl::Status status = store->connection_->Execute(pragma);
    if (!status.ok()) return Annotate(status, path);
  }
  const absl::Status migrated = store->Migrate();
  if (!migrated.ok()) return Annotate(migrated, path);
  return store;
}

absl::Status SqliteJobStore::Migrate() {
  SqliteTransaction transaction(connection_.get());
  QST_RETURN_IF_ERROR(transaction.Begin());
  QST_RETURN_IF_ERROR(connection_->Execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"));
  int version = 0;
  {
    QST_ASSIGN_OR_RETURN(SqliteStatement statement, connection_->Prepare("SELECT version FROM schema_version"));
    QST_ASSIGN_OR_RETURN(const bool has_row, statement.Step());
    if (has_row) version = static_cast<int>(statement.Int(0));
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the store has schema version ", version,
                                                      ", this coordinator knows up to ", kSchemaVersion,
                                                      ": use the newer coordinator that made it"));
  }
  if (version == kSchemaVersion) return transaction.Commit();
  for (; version < kSchemaVersion; ++version) QST_RETURN_IF_ERROR(connection_->Execute(kMigrations[version]));
  QST_RETURN_IF_ERROR(connection_->Execute(
      absl::StrCat("DELETE FROM schema_version; INSERT INTO schema_version VALUES (", version, ")")));
  return transaction.Commit();
}

absl::Status SqliteJobStore::SetDurability(Durability durability) {
  if (durability == durability_) return absl::OkStatus();
  QST_RETURN_IF_ERROR(connection_->Execute(durability == Durability::kSynced ? "PRAGMA synchronous = FULL"
                                                                             : "PRAGMA synchronous = NORMAL"));
  durability_ = durability;
  return absl::OkStatus();
}

absl::Status SqliteJobStore::InsertEvents(const std::string& job_id, std::uint64_t after, std::uint64_t last,
                                          const std::vector<v1::JobEvent>& events) {
  for (const v1::JobEvent& event : events) {
    if (event.sequence() != ++after) {
      return absl::InternalError(
          absl::StrCat("job ", job_id, ": event ", event.sequence(), " where ", after, " must come"));
    }
    QST_ASSIGN_OR_RETURN(SqliteStatement insert,
                         connection_->Prepare("INSERT INTO events (job_id, sequence, event) VALUES (?, ?, ?)"));
    insert.BindText(job_id).Bind(static_cast<std::int64_t>(event.sequence())).BindProto(event);
    QST_RETURN_IF_ERROR(insert.Run());
  }
  if (after != last) {
    return absl::InternalError(absl::StrCat("job ", job_id, ": last event is ", after, ", the record says ", last));
  }
  return absl::OkStatus();
}

absl::Status SqliteJobStore::CreateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events) {
  QST_RETURN_IF_ERROR(SetDurability(Durability::kSynced));
  SqliteTransaction transaction(connection_.get());
  QST_RETURN_IF_ERROR(transaction.Begin());
  {
    QST_ASSIGN_OR_RETURN(
        SqliteStatement insert,
        connection_->Prepare("INSERT INTO jobs (id, request_id, state, job, last_sequence, report_sequence, "
                             "cancel_requested) VALUES (?, ?, ?, ?, ?, ?, ?)"));
    insert.BindText(record.job.id())
        .BindTextOrNull(record.request_id)
        .Bind(record.job.state())
        .BindProto(record.job)
        .Bind(static_cast<std::int64_t>(record.last_sequence))
        .Bind(static_cast<std::int64_t>(record.report_sequence))
        .Bind(record.cancel_requested ? 1 : 0);
    QST_RETURN_IF_ERROR(insert.Run());
  }
  QST_RETURN_IF_ERROR(InsertEvents(record.job.id(), 0, record.last_sequence, events));
  return transaction.Commit();
}

absl::Status SqliteJobStore::UpdateJob(const JobRecord& record, const std::vector<v1::JobEvent>& events,
                                       Durability durability) {
  QST_RETURN_IF_ERROR(SetDurability(durability));
  SqliteTransaction transaction(connection_.get());
  QST_RETURN_IF_ERROR(transaction.Begin());
  std::uint64_t stored_sequence = 0;
  {
    QST_ASSIGN_OR_RETURN(SqliteStatement select, connection_->Prepare("SELECT last_sequence FROM jobs WHERE id = ?"));
    select.BindText(record.job.id());
    QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
    if (!has_row) return absl::NotFoundError(absl::StrCat("no job '", record.job.id(), "'"));
    stored_sequence = static_cast<std::uint64_t>(select.Int(0));
  }
  QST_RETURN_IF_ERROR(InsertEvents(record.job.id(), stored_sequence, record.last_sequence, events));
  {
    QST_ASSIGN_OR_RETURN(SqliteStatement update,
                         connection_->Prepare("UPDATE jobs SET state = ?, job = ?, last_sequence = ?, "
                                              "report_sequence = ?, cancel_requested = ? WHERE id = ?"));
    update.Bind(record.job.state())
        .BindProto(record.job)
        .Bind(static_cast<std::int64_t>(record.last_sequence))
        .Bind(static_cast<std::int64_t>(record.report_sequence))
        .Bind(record.cancel_requested ? 1 : 0)
        .BindText(record.job.id());
    QST_RETURN_IF_ERROR(update.Run());
  }
  return transaction.Commit();
}

absl::StatusOr<JobRecord> SqliteJobStore::GetJob(const std::string& id) {
  QST_ASSIGN_OR_RETURN(SqliteStatement select,
                       connection_->Prepare(absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE id = ?")));
  select.BindText(id);
  QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
  if (!has_row) return absl::NotFoundError(absl::StrCat("no job '", id, "'"));
  return ReadJob(select);
}

absl::StatusOr<std::optional<JobRecord>> SqliteJobStore::FindJobByRequest(const std::string& request_id) {
  if (request_id.empty()) return {std::nullopt};
  QST_ASSIGN_OR_RETURN(SqliteStatement select,
                       connection_->Prepare(absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE request_id = ?")));
  select.BindText(request_id);
  QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
  if (!has_row) return {std::nullopt};
  QST_ASSIGN_OR_RETURN(JobRecord record, ReadJob(select));
  return {std::move(record)};
}

absl::StatusOr<std::vector<JobRecord>> SqliteJobStore::ListJobs(const std::vector<v1::JobState>& states,
                                                                std::uint32_t limit) {
  QST_ASSIGN_OR_RETURN(SqliteStatement select, connection_->Prepare(absl::StrCat(
                                                   "SELECT ", kJobColumns, ", state FROM jobs ORDER BY number DESC")));
  std::vector<JobRecord> records;
  while (limit == 0 || records.size() < limit) {
    QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
    if (!has_row) break;
    const auto state = static_cast<v1::JobState>(select.Int(5));
    if (!states.empty() && std::find(states.begin(), states.end(), state) == states.end()) continue;
    QST_ASSIGN_OR_RETURN(JobRecord record, ReadJob(select));
    records.push_back(std::move(record));
  }
  return records;
}

absl::StatusOr<std::vector<v1::JobEvent>> SqliteJobStore::ListEvents(const std::string& job_id, std::uint64_t after,
                                                                     std::uint32_t limit) {
  QST_ASSIGN_OR_RETURN(
      SqliteStatement select,
      connection_->Prepare("SELECT event FROM events WHERE job_id = ? AND sequence > ? ORDER BY sequence LIMIT ?"));
  select.BindText(job_id).Bind(static_cast<std::int64_t>(after)).Bind(limit);
  std::vector<v1::JobEvent> events;
  while (true) {
    QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
    if (!has_row) return events;
    QST_RETURN_IF_ERROR(select.Proto(0, &events.emplace_back()));
  }
}

absl::Status SqliteJobStore::PutDataset(const DatasetRecord& record) {
  QST_RETURN_IF_ERROR(SetDurability(Durability::kSynced));
  v1::Dataset dataset = record.dataset;
  dataset.clear_name();
  SqliteTransaction transaction(connection_.get());
  QST_RETURN_IF_ERROR(transaction.Begin());
  {
    QST_ASSIGN_OR_RETURN(SqliteStatement upsert,
                         connection_->Prepare("INSERT INTO datasets (id, dataset) VALUES (?, ?) "
                                              "ON CONFLICT (id) DO UPDATE SET dataset = excluded.dataset"));
    upsert.BindText(dataset.id()).BindProto(dataset);
    QST_RETURN_IF_ERROR(upsert.Run());
  }
  {
    QST_ASSIGN_OR_RETURN(SqliteStatement clear, connection_->Prepare("DELETE FROM dataset_names WHERE dataset_id = ?"));
    clear.BindText(dataset.id());
    QST_RETURN_IF_ERROR(clear.Run());
  }
  for (const std::string& name : record.names) {
    QST_ASSIGN_OR_RETURN(SqliteStatement insert,
                         connection_->Prepare("INSERT INTO dataset_names (name, dataset_id) VALUES (?, ?)"));
    insert.BindText(name).BindText(dataset.id());
    const absl::Status status = insert.Run();
    if (absl::IsAlreadyExists(status)) {
      return absl::AlreadyExistsError(absl::StrCat("the name '", name, "' belongs to another data set"));
    }
    QST_RETURN_IF_ERROR(status);
  }
  return transaction.Commit();
}

absl::StatusOr<std::optional<DatasetRecord>> SqliteJobStore::FindDataset(const std::string& id) {
  QST_ASSIGN_OR_RETURN(SqliteStatement select, connection_->Prepare("SELECT dataset FROM datasets WHERE id = ?"));
  select.BindText(id);
  QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
  if (!has_row) return {std::nullopt};
  DatasetRecord record;
  QST_RETURN_IF_ERROR(select.Proto(0, &record.dataset));
  QST_RETURN_IF_ERROR(ReadDatasetNames(connection_.get(), &record));
  return {std::move(record)};
}

absl::StatusOr<std::optional<DatasetRecord>> SqliteJobStore::FindDatasetByName(const std::string& name) {
  std::string id;
  {
    QST_ASSIGN_OR_RETURN(SqliteStatement select,
                         connection_->Prepare("SELECT dataset_id FROM dataset_names WHERE name = ?"));
    select.BindText(name);
    QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
    if (!has_row) return {std::nullopt};
    id = select.Text(0);
  }
  return FindDataset(id);
}

absl::StatusOr<std::vector<DatasetRecord>> SqliteJobStore::ListDatasets() {
  std::vector<DatasetRecord> records;
  {
    QST_ASSIGN_OR_RETURN(SqliteStatement select, connection_->Prepare("SELECT dataset FROM datasets ORDER BY number"));
    while (true) {
      QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
      if (!has_row) break;
      QST_RETURN_IF_ERROR(select.Proto(0, &records.emplace_back().dataset));
    }
  }
  for (DatasetRecord& record : records) QST_RETURN_IF_ERROR(ReadDatasetNames(connection_.get(), &record));
  return records;
}

absl::Status SqliteJobStore::DeleteDataset(const std::string& id) {
  QST_RETURN_IF_ERROR(SetDurability(Durability::kSynced));
  QST_ASSIGN_OR_RETURN(SqliteStatement remove, connection_->Prepare("DELETE FROM datasets WHERE id = ?"));
  remove.BindText(id);
  QST_RETURN_IF_ERROR(remove.Run());
  if (connection_->Changes() == 0) return absl::NotFoundError(absl::StrCat("no data set '", id, "'"));
  return absl::OkStatus();
}

absl::Status SqliteJobStore::PutModel(const ModelRecord& record) {
  QST_RETURN_IF_ERROR(SetDurability(Durability::kSynced));
  QST_ASSIGN_OR_RETURN(SqliteStatement put,
                       connection_->Prepare("INSERT OR REPLACE INTO models (name, ready, pending, "
                                            "pending_path, pending_worker_id) VALUES (?, ?, ?, ?, ?)"));
  put.BindText(record.name);
  record.ready.has_value() ? put.BindProto(*record.ready) : put.BindNull();
  record.pending.has_value() ? put.BindProto(*record.pending) : put.BindNull();
  put.BindText(record.pending_path).BindText(record.pending_worker_id);
  return put.Run();
}

absl::StatusOr<std::optional<ModelRecord>> SqliteJobStore::FindModel(const std::string& name) {
  QST_ASSIGN_OR_RETURN(
      SqliteStatement select,
      connection_->Prepare("SELECT name, ready, pending, pending_path, pending_worker_id FROM models WHERE name = ?"));
  select.BindText(name);
  QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
  if (!has_row) return {std::nullopt};
  QST_ASSIGN_OR_RETURN(ModelRecord record, ReadModel(select));
  return {std::move(record)};
}

absl::StatusOr<std::vector<ModelRecord>> SqliteJobStore::ListModels() {
  QST_ASSIGN_OR_RETURN(
      SqliteStatement select,
      connection_->Prepare("SELECT name, ready, pending, pending_path, pending_worker_id FROM models ORDER BY name"));
  std::vector<ModelRecord> records;
  while (true) {
    QST_ASSIGN_OR_RETURN(const bool has_row, select.Step());
    if (!has_row) return records;
    QST_ASSIGN_OR_RETURN(ModelRecord record, ReadModel(select));
    records.push_back(std::move(record));
  }
}

absl::Status SqliteJobStore::DeleteModel(const std::string& name) {
  QST_RETURN_IF_ERROR(SetDurability(Durability::kSynced));
  QST_ASSIGN_OR_RETURN(SqliteStatement remove, connection_->Prepare("DELETE FROM models WHERE name = ?"));
  remove.BindText(name);
  QST_RETURN_IF_ERROR(remove.Run());
  if (connection_->Changes() == 0) return absl::NotFoundError(absl::StrCat("no model '", name, "'"));
  return absl::OkStatus();
}

}  // namespace qst
