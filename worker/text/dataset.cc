#include "worker/text/dataset.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "worker/text/dataset_builder.h"
#include "worker/text/json_util.h"
#include "worker/text/table.h"

namespace qst {
namespace {

DataFormat DetectFormat(absl::string_view name, absl::string_view bytes) {
  bytes = absl::StripLeadingAsciiWhitespace(SkipByteOrderMark(bytes));
  const bool is_array = absl::StartsWith(bytes, "[");
  const std::string lower = absl::AsciiStrToLower(name);
  if (absl::EndsWith(lower, ".jsonl") || absl::EndsWith(lower, ".ndjson")) return DataFormat::kJsonl;
  if (absl::EndsWith(lower, ".tsv")) return DataFormat::kTsv;
  if (absl::EndsWith(lower, ".csv")) return DataFormat::kCsv;
  if (absl::EndsWith(lower, ".txt")) return DataFormat::kText;
  // Many a .json file has one object a line.
  if (is_array || absl::StartsWith(bytes, "{")) return is_array ? DataFormat::kJson : DataFormat::kJsonl;
  if (absl::EndsWith(lower, ".json")) return DataFormat::kJson;
  const absl::string_view header = bytes.substr(0, bytes.find('\n'));
  if (absl::StrContains(header, '\t')) return DataFormat::kTsv;
  if (absl::StrContains(header, ',')) return DataFormat::kCsv;
  return DataFormat::kAuto;
}

constexpr std::pair<DataFormat, absl::string_view> kFormatNames[] = {
    {DataFormat::kAuto, "auto"}, {DataFormat::kJsonl, "jsonl"}, {DataFormat::kJson, "json"},
    {DataFormat::kTsv, "tsv"},   {DataFormat::kCsv, "csv"},     {DataFormat::kText, "text"}};

// Columns that are named by their numbers.
std::vector<std::string> NumberedColumns(const DataColumns& columns) {
  std::vector<std::string> numbered;
  for (const std::string* name :
       {&columns.text, &columns.text_pair, &columns.label, &columns.instruction, &columns.input, &columns.output,
        &columns.prompt, &columns.completion, &columns.messages}) {
    int number = 0;
    if (absl::SimpleAtoi(*name, &number) && number > 0) numbered.push_back(*name);
  }
  return numbered;
}

// TSV and CSV. Where columns are named by numbers that the header does not have, it is no header.
absl::StatusOr<Table> ParseFields(DataFormat format, absl::string_view name, absl::string_view bytes,
                                  const DataColumns& columns) {
  const auto parse = format == DataFormat::kTsv ? &ParseTsvTable : &ParseCsvTable;
  absl::StatusOr<Table> table = parse(name, bytes, /*has_header=*/true);
  for (const std::string& column : NumberedColumns(columns)) {
    const bool has_column =
        table.ok() && std::find(table->columns.begin(), table->columns.end(), column) != table->columns.end();
    if (!has_column) return parse(name, bytes, /*has_header=*/false);
  }
  return table;
}

}  // namespace

absl::string_view DataFormatName(DataFormat format) {
  for (const auto& [known, name] : kFormatNames) {
    if (known == format) return name;
  }
  return "unknown";
}

absl::StatusOr<DataFormat> ParseDataFormat(absl::string_view name) {
  if (name.empty()) return DataFormat::kAuto;
  std::vector<absl::string_view> names;
  for (const auto& [format, known] : kFormatNames) {
    if (known == name) return format;
    names.push_back(known);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown data format \"", name, "\"; known: ", absl::StrJoin(names, ", ")));
}

absl::string_view DataKindName(DataKind kind) {
  switch (kind) {
    case DataKind::kClassification:
      return "classification";
    case DataKind::kInstruction:
      return "instruction";
    case DataKind::kCompletion:
      return "completion";
    case DataKind::kChat:
      return "chat";
    case DataKind::kText:
      return "text";
    case DataKind::kRegression:
      return "regression";
  }
  return "unknown";
}

absl::StatusOr<Dataset> ParseDataset(absl::string_view name, absl::string_view bytes, const DatasetOptions& options) {
  if (absl::StripAsciiWhitespace(SkipByteOrderMark(bytes)).empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": the file is empty"));
  }
  const DataFormat format = options.format == DataFormat::kAuto ? DetectFormat(name, bytes) : options.format;
  absl::StatusOr<Table> table = absl::InvalidArgumentError(
      absl::StrCat(name, ": cannot tell the format; set data.format to jsonl, json, tsv, csv or text"));
  switch (format) {
    case DataFormat::kJsonl:
      table = ParseJsonlTable(name, bytes);
      break;
    case DataFormat::kJson:
      table = ParseJsonTable(name, bytes);
      break;
    case DataFormat::kTsv:
    case DataFormat::kCsv:
      table = ParseFields(format, name, bytes, options.columns);
      break;
    case DataFormat::kText:
      table = ParseTextTable(name, bytes);
      break;
    case DataFormat::kAuto:
      break;
  }
  if (!table.ok()) return table.status();
  return BuildDataset(name, format, *table, options);
}

absl::StatusOr<Dataset> ReadDataset(const std::string& path, const DatasetOptions& options) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
  }
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  std::ifstream stream(path, std::ios::binary);
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  if (!stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  const size_t slash = path.rfind('/');
  return ParseDataset(slash == std::string::npos ? path : path.substr(slash + 1), bytes, options);
}

}  // namespace qst
