#include "worker/text/table.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using nlohmann::json;

// More than any data set has: names that are others in each row, or a line of separators, are not read to the end.
constexpr size_t kMaxColumns = 1000;

constexpr char kHeaderlessAdvice[] =
    "if the file has no header line, name its columns by number in data.columns (text: \"1\", label: \"2\")";

absl::Status At(absl::string_view name, absl::string_view row_word, int64_t line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(name, " ", row_word, " ", line, ": ", what));
}

absl::Status TooManyColumns(absl::string_view name, int64_t line) {
  return At(name, "line", line, absl::StrCat("more than ", kMaxColumns, " columns"));
}

// Adds rows that are JSON objects.
class ObjectRows {
 public:
  ObjectRows(absl::string_view name, Table* table) : name_(name), table_(table) {}

  absl::Status Add(int64_t line, json object) {
    if (!object.is_object()) {
      return At(name_, table_->row_word, line, absl::StrCat("not a JSON object but ", object.type_name()));
    }
    Table::Row row;
    row.line = line;
    for (auto& [key, value] : object.items()) {
      const auto [it, is_new] = index_.try_emplace(key, table_->columns.size());
      if (is_new) {
        if (table_->columns.size() == kMaxColumns) {
          return At(name_, table_->row_word, line, absl::StrCat("more than ", kMaxColumns, " different names"));
        }
        table_->columns.push_back(key);
      }
      row.values.emplace_back(it->second, std::move(value));
    }
    table_->rows.push_back(std::move(row));
    return absl::OkStatus();
  }

 private:
  absl::string_view name_;
  Table* table_;
  absl::flat_hash_map<std::string, size_t> index_;
};

// Adds rows that are lists of fields, the first of them the header.
class FieldRows {
 public:
  FieldRows(absl::string_view name, bool has_header, Table* table)
      : name_(name), has_header_(has_header), table_(table) {}

  absl::Status Add(int64_t line, std::vector<std::string> fields) {
    for (const std::string& field : fields) {
      if (!IsValidUtf8(field)) return At(name_, "line", line, "not valid UTF-8; convert the file to UTF-8");
    }
    if (table_->columns.empty()) {
      if (has_header_) return SetHeader(line, std::move(fields));
      for (size_t i = 1; i <= fields.size(); ++i) table_->columns.push_back(absl::StrCat(i));
    }
    if (fields.size() != table_->columns.size()) {
      return At(name_, "line", line,
                absl::StrCat(fields.size(), " fields, but the ", has_header_ ? "header" : "first line", " has ",
                             table_->columns.size()));
    }
    Table::Row row;
    row.line = line;
    row.values.reserve(fields.size());
    for (size_t i = 0; i < fields.size(); ++i) row.values.emplace_back(i, json(std::move(fields[i])));
    table_->rows.push_back(std::move(row));
    return absl::OkStatus();
  }

 private:
  absl::Status SetHeader(int64_t line, std::vector<std::string> fields) {
    for (size_t i = 0; i < fields.size(); ++i) {
      if (std::find(fields.begin(), fields.begin() + i, fields[i]) != fields.begin() + i) {
        return At(name_, "line", line, absl::StrCat("the header has \"", fields[i], "\" twice; ", kHeaderlessAdvice));
      }
    }
    table_->columns = std::move(fields);
    return absl::OkStatus();
  }

  absl::string_view name_;
  const bool has_header_;
  Table* table_;
};

// Calls `f(line_number, line)` for each line, without its end, until it fails.
template <typename F>
absl::Status ForEachLine(absl::string_view bytes, F f) {
  for (int64_t number = 1; !bytes.empty(); ++number) {
    const size_t end = bytes.find('\n');
    absl::string_view line = bytes.substr(0, end);
    bytes = end == absl::string_view::npos ? absl::string_view() : bytes.substr(end + 1);
    if (absl::EndsWith(line, "\r")) line.remove_suffix(1);
    QST_RETURN_IF_ERROR(f(number, line));
  }
  return absl::OkStatus();
}

// Reads the records of a CSV file one by one.
class CsvReader {
 public:
  CsvReader(absl::string_view name, absl::string_view bytes) : name_(name), bytes_(bytes) {}

  bool AtEnd() const { return position_ >= bytes_.size(); }
  int64_t line() const { return line_; }

  absl::StatusOr<std::vector<std::string>> ReadRecord() {
    std::vector<std::string> fields;
    for (;;) {
      if (fields.size() == kMaxColumns) return TooManyColumns(name_, line_);
      fields.emplace_back();
      const bool is_quoted = position_ < bytes_.size() && bytes_[position_] == '"';
      QST_RETURN_IF_ERROR(is_quoted ? ReadQuoted(&fields.back()) : ReadPlain(&fields.back()));
      if (AtEnd()) return fields;
      const char delimiter = bytes_[position_++];
      if (delimiter == ',') continue;
      if (delimiter == '\r') ++position_;  // the line feed after it
      ++line_;
      return fields;
    }
  }

 private:
  // Whether a comma or a line's end is next, or the end of the file.
  bool AtDelimiter() const {
    if (AtEnd()) return true;
    const char c = bytes_[position_];
    return c == ',' || c == '\n' || (c == '\r' && position_ + 1 < bytes_.size() && bytes_[position_ + 1] == '\n');
  }

  absl::Status ReadPlain(std::string* field) {
    while (!AtDelimiter()) field->push_back(bytes_[position_++]);
    return absl::OkStatus();
  }

  absl::Status ReadQuoted(std::string* field) {
    const int64_t first_line = line_;
    ++position_;
    for (;; ++position_) {
      if (AtEnd()) return At(name_, "line", first_line, "a quoted field does not end");
      const char c = bytes_[position_];
      if (c == '\n') ++line_;
      if (c != '"') {
        field->push_back(c);
      } else if (position_ + 1 < bytes_.size() && bytes_[position_ + 1] == '"') {
        field->push_back(c);
        ++position_;
      } else {
        break;
      }
    }
    ++position_;
    if (!AtDelimiter()) return At(name_, "line", line_, "text after the closing quote of a field");
    return absl::OkStatus();
  }

  absl::string_view name_;
  absl::string_view bytes_;
  size_t position_ = 0;
  int64_t line_ = 1;
};

}  // namespace

absl::string_view SkipByteOrderMark(absl::string_view bytes) {
  absl::ConsumePrefix(&bytes, "\xEF\xBB\xBF");
  return bytes;
}

absl::StatusOr<Table> ParseJsonlTable(absl::string_view name, absl::string_view bytes) {
  Table table;
  ObjectRows rows(name, &table);
  QST_RETURN_IF_ERROR(ForEachLine(SkipByteOrderMark(bytes), [&](int64_t number, absl::string_view line) {
    if (absl::StripAsciiWhitespace(line).empty()) return absl::OkStatus();
    absl::StatusOr<json> object = ParseJson(line);
    if (!object.ok()) return At(name, "line", number, object.status().message());
    return rows.Add(number, *std::move(object));
  }));
  return table;
}

absl::StatusOr<Table> ParseJsonTable(absl::string_view name, absl::string_view bytes) {
  bytes = SkipByteOrderMark(bytes);
  json root;
  try {
    root = json::parse(bytes.begin(), bytes.end());
  } catch (const json::parse_error& error) {
    // The byte counts from 1 and may be one past the end.
    const size_t before = std::min(bytes.size(), error.byte == 0 ? 0 : error.byte - 1);
    const int64_t line = 1 + std::count(bytes.begin(), bytes.begin() + before, '\n');
    return At(name, "line", line, absl::StrCat("not JSON: mistake at byte ", error.byte, " of the file"));
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": not JSON: ", error.what()));
  }
  if (!root.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": not a JSON array but ", root.type_name(), "; a file with one object a line is jsonl"));
  }
  Table table;
  table.row_word = "element";
  ObjectRows rows(name, &table);
  int64_t number = 0;
  for (json& element : root) QST_RETURN_IF_ERROR(rows.Add(++number, std::move(element)));
  return table;
}

absl::StatusOr<Table> ParseTsvTable(absl::string_view name, absl::string_view bytes, bool has_header) {
  Table table;
  FieldRows rows(name, has_header, &table);
  QST_RETURN_IF_ERROR(ForEachLine(SkipByteOrderMark(bytes), [&](int64_t number, absl::string_view line) {
    if (line.empty()) return absl::OkStatus();
    std::vector<std::string> fields;
    for (;;) {
      if (fields.size() == kMaxColumns) return TooManyColumns(name, number);
      const size_t tab = line.find('\t');
      fields.emplace_back(line.substr(0, tab));
      if (tab == absl::string_view::npos) break;
      line.remove_prefix(tab + 1);
    }
    return rows.Add(number, std::move(fields));
  }));
  return table;
}

absl::StatusOr<Table> ParseTextTable(absl::string_view name, absl::string_view bytes) {
  Table table;
  table.columns = {"text"};
  QST_RETURN_IF_ERROR(ForEachLine(SkipByteOrderMark(bytes), [&](int64_t number, absl::string_view line) {
    if (absl::StripAsciiWhitespace(line).empty()) return absl::OkStatus();
    if (!IsValidUtf8(line)) return At(name, "line", number, "not valid UTF-8; convert the file to UTF-8");
    Table::Row row;
    row.line = number;
    row.values.emplace_back(0, json(std::string(line)));
    table.rows.push_back(std::move(row));
    return absl::OkStatus();
  }));
  return table;
}

absl::StatusOr<Table> ParseCsvTable(absl::string_view name, absl::string_view bytes, bool has_header) {
  Table table;
  FieldRows rows(name, has_header, &table);
  CsvReader reader(name, SkipByteOrderMark(bytes));
  while (!reader.AtEnd()) {
    const int64_t line = reader.line();
    QST_ASSIGN_OR_RETURN(std::vector<std::string> fields, reader.ReadRecord());
    if (fields.size() == 1 && fields[0].empty()) continue;  // a blank line
    QST_RETURN_IF_ERROR(rows.Add(line, std::move(fields)));
  }
  return table;
}

}  // namespace qst
