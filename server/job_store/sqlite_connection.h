// A thin, typed hold on one SQLite connection: statements, transactions, status codes.
#ifndef QST_SERVER_JOB_STORE_SQLITE_CONNECTION_H_
#define QST_SERVER_JOB_STORE_SQLITE_CONNECTION_H_

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"

namespace qst {

// One use of a prepared statement: bind in order, then Step until it returns false. The statement goes back to the
// connection's cache, reset, when this is destroyed.
class SqliteStatement {
 public:
  SqliteStatement(sqlite3* database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}
  ~SqliteStatement();
  SqliteStatement(SqliteStatement&& other) noexcept;
  SqliteStatement& operator=(SqliteStatement&&) = delete;

  SqliteStatement& Bind(std::int64_t value);
  SqliteStatement& BindText(absl::string_view value);
  // NULL if empty.
  SqliteStatement& BindTextOrNull(absl::string_view value);
  SqliteStatement& BindProto(const google::protobuf::MessageLite& value);
  SqliteStatement& BindNull();

  // True: a row is there. False: done.
  absl::StatusOr<bool> Step();
  // For statements without rows. kAlreadyExists: a uniqueness rule refused it.
  absl::Status Run();

  std::int64_t Int(int column) const;
  std::string Text(int column) const;
  bool IsNull(int column) const;
  // kDataLoss if the bytes do not parse.
  absl::Status Proto(int column, google::protobuf::MessageLite* value) const;

 private:
  sqlite3* database_;
  sqlite3_stmt* statement_;
  int next_parameter_ = 1;
  int bind_result_ = SQLITE_OK;
};

class SqliteConnection {
 public:
  static absl::StatusOr<std::unique_ptr<SqliteConnection>> Open(const std::string& path);
  ~SqliteConnection();

  absl::Status Execute(const std::string& sql);
  // `sql` is prepared once per connection.
  absl::StatusOr<SqliteStatement> Prepare(absl::string_view sql);
  // Rows that the last statement changed.
  int Changes() const { return sqlite3_changes(database_); }

 private:
  explicit SqliteConnection(sqlite3* database) : database_(database) {}

  sqlite3* database_;
  std::map<std::string, sqlite3_stmt*, std::less<>> statements_;
};

// Begins in the constructor's wake (Begin), rolls back unless committed.
class SqliteTransaction {
 public:
  explicit SqliteTransaction(SqliteConnection* connection) : connection_(connection) {}
  ~SqliteTransaction();

  absl::Status Begin();
  absl::Status Commit();

 private:
  SqliteConnection* connection_;
  bool open_ = false;
};

// "context: what SQLite says" with the code that fits.
absl::Status SqliteError(sqlite3* database, int result, absl::string_view context);

}  // namespace qst

#endif  // QST_SERVER_JOB_STORE_SQLITE_CONNECTION_H_
