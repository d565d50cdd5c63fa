// A data file as rows and columns, before anybody knows what the columns mean.
#ifndef QST_WORKER_TEXT_TABLE_H_
#define QST_WORKER_TEXT_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace qst {

struct Table {
  struct Row {
    int64_t line = 0;  // from 1; of a JSON array: the element's number
    // What the row has, each with its column. No place is kept for what it lacks: a thousand columns in the first row
    // and one in each that follows would make a huge table of a small file.
    std::vector<std::pair<size_t, nlohmann::json>> values;
  };
  std::vector<std::string> columns;  // in the order of their first appearance
  std::vector<Row> rows;
  std::string row_word = "line";
};

// Errors of all: kInvalidArgument, beginning with "NAME line N: ". A byte-order mark is skipped.
absl::StatusOr<Table> ParseJsonlTable(absl::string_view name, absl::string_view bytes);
absl::StatusOr<Table> ParseJsonTable(absl::string_view name, absl::string_view bytes);
// Without `has_header` the columns are called "1", "2", ...
absl::StatusOr<Table> ParseTsvTable(absl::string_view name, absl::string_view bytes, bool has_header = true);
absl::StatusOr<Table> ParseCsvTable(absl::string_view name, absl::string_view bytes, bool has_header = true);
// One column, "text".
absl::StatusOr<Table> ParseTextTable(absl::string_view name, absl::string_view bytes);

// Without a byte-order mark at the beginning.
absl::string_view SkipByteOrderMark(absl::string_view bytes);

}  // namespace qst

#endif  // QST_WORKER_TEXT_TABLE_H_
