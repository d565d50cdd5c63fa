#include "server/job_store/sqlite_connection.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {

absl::Status SqliteError(sqlite3* database, int result, absl::string_view context) {
  const std::string message = absl::StrCat(context, ": ", database != nullptr ? sqlite3_errmsg(database) : "no memory");
  switch (result & 0xff) {
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::FailedPreconditionError(absl::StrCat(message, " (is another coordinator using this store?)"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(message);
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_IOERR:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

SqliteStatement::~SqliteStatement() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

SqliteStatement::SqliteStatement(SqliteStatement&& other) noexcept
    : database_(other.database_),
      statement_(std::exchange(other.statement_, nullptr)),
      next_parameter_(other.next_parameter_),
      bind_result_(other.bind_result_) {}

SqliteStatement& SqliteStatement::Bind(std::int64_t value) {
  const int result = sqlite3_bind_int64(statement_, next_parameter_++, value);
  if (bind_result_ == SQLITE_OK) bind_result_ = result;
  return *this;
}

SqliteStatement& SqliteStatement::BindText(absl::string_view value) {
  const int result = sqlite3_bind_text64(statement_, next_parameter_++, value.data() == nullptr ? "" : value.data(),
                                         value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  if (bind_result_ == SQLITE_OK) bind_result_ = result;
  return *this;
}

SqliteStatement& SqliteStatement::BindTextOrNull(absl::string_view value) {
  return value.empty() ? BindNull() : BindText(value);
}

SqliteStatement& SqliteStatement::BindProto(const google::protobuf::MessageLite& value) {
  const std::string bytes = value.SerializeAsString();
  const int result = sqlite3_bind_blob64(statement_, next_parameter_++, bytes.data(), bytes.size(), SQLITE_TRANSIENT);
  if (bind_result_ == SQLITE_OK) bind_result_ = result;
  return *this;
}

SqliteStatement& SqliteStatement::BindNull() {
  const int result = sqlite3_bind_null(statement_, next_parameter_++);
  if (bind_result_ == SQLITE_OK) bind_result_ = result;
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  if (bind_result_ != SQLITE_OK) return SqliteError(database_, bind_result_, "binding a value");
  const int result = sqlite3_step(statement_);
  if (result == SQLITE_ROW) return true;
  if (result == SQLITE_DONE) return false;
  return SqliteError(database_, result, "job store");
}

absl::Status SqliteStatement::Run() { return Step().status(); }

std::int64_t SqliteStatement::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string SqliteStatement::Text(int column) const {
  const unsigned char* text = sqlite3_column_text(statement_, column);
  if (text == nullptr) return "";
  return std::string(reinterpret_cast<const char*>(text), sqlite3_column_bytes(statement_, column));
}

bool SqliteStatement::IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

absl::Status SqliteStatement::Proto(int column, google::protobuf::MessageLite* value) const {
  const void* bytes = sqlite3_column_blob(statement_, column);
  if (!value->ParseFromArray(bytes, sqlite3_column_bytes(statement_, column))) {
    return absl::DataLossError(absl::StrCat("job store: a stored ", value->GetTypeName(), " does not parse"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SqliteConnection>> SqliteConnection::Open(const std::string& path) {
  sqlite3* database = nullptr;
  const int result = sqlite3_open_v2(path.c_str(), &database,
                                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  if (result != SQLITE_OK) {
    const absl::Status status = SqliteError(database, result, path);
    sqlite3_close(database);
    return status;
  }
  sqlite3_extended_result_codes(database, 1);
  return std::unique_ptr<SqliteConnection>(new SqliteConnection(database));
}

SqliteConnection::~SqliteConnection() {
  for (const auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(database_);
}

absl::Status SqliteConnection::Execute(const std::string& sql) {
  const int result = sqlite3_exec(database_, sql.c_str(), nullptr, nullptr, nullptr);
  if (result != SQLITE_OK) return SqliteError(database_, result, "job store");
  return absl::OkStatus();
}

absl::StatusOr<SqliteStatement> SqliteConnection::Prepare(absl::string_view sql) {
  const auto found = statements_.find(sql);
  if (found != statements_.end()) return SqliteStatement(database_, found->second);
  sqlite3_stmt* statement = nullptr;
  const int result = sqlite3_prepare_v3(database_, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                                        &statement, nullptr);
  if (result != SQLITE_OK) return SqliteError(database_, result, absl::StrCat("job store, '", sql, "'"));
  statements_.emplace(std::string(sql), statement);
  return SqliteStatement(database_, statement);
}

SqliteTransaction::~SqliteTransaction() {
  if (open_) connection_->Execute("ROLLBACK").IgnoreError();
}

absl::Status SqliteTransaction::Begin() {
  QST_RETURN_IF_ERROR(connection_->Execute("BEGIN IMMEDIATE"));
  open_ = true;
  return absl::OkStatus();
}

absl::Status SqliteTransaction::Commit() {
  QST_RETURN_IF_ERROR(connection_->Execute("COMMIT"));
  open_ = false;
  return absl::OkStatus();
}

}  // namespace qst
